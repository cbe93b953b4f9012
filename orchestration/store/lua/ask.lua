-- Record which hosts are asked for their receipts before the run continues.
--
-- FROM     a run that has a record, in the epoch given
-- ARGV[1]  epoch  ARGV[2]  name of the question  ARGV[3]  hosts, separated by spaces
-- RETURNS  1 recorded, 0 the epoch has changed, or the question was recorded before
-- EVENTS   hosts_asked
local state, epoch, asking = unpack(redis.call('HMGET', run, 'state', 'epoch', 'asking'))
if not state
    -- guard: an older decision asks no host about a reopened run
    or (epoch or '0') ~= ARGV[1]
    -- guard: a question is recorded once
    or asking == ARGV[2] then
  return 0
end
redis.call('HSET', run, 'asking', ARGV[2], 'asked', ARGV[3], 'asked_at', now, 'answered', '')
emit('hosts_asked', 'hosts', ARGV[3])
return 1
