-- End a question about receipts: all were compared with the record, or some hosts did not answer; the run continues.
--
-- FROM     a run that has a record, in the epoch given
-- ARGV[1]  epoch  ARGV[2]  number of lost attempts that are fenced now  ARGV[3]  '1' if all receipts were compared
-- ARGV[4]  hosts that did not answer, a line each, or ''
-- RETURNS  1 recorded, 0 the epoch has changed, or more attempts were lost meanwhile
-- EVENTS   receipts_compared
local state, epoch, lost, doubts = unpack(redis.call('HMGET', run, 'state', 'epoch', 'lost', 'doubts'))
if not state
    -- guard: an older decision ends no question of a reopened run
    or (epoch or '0') ~= ARGV[1]
    -- guard: a question does not end if another attempt was lost meanwhile
    or (lost or '0') ~= ARGV[2] then
  return 0
end
redis.call('HSET', run, 'fenced', ARGV[2])
-- guard: a question about lost attempts does not compare all receipts; without it: true
if ARGV[3] == '1' then
  redis.call('HSET', run, 'compared', ARGV[1])
end
if ARGV[4] ~= '' then
  redis.call('HSET', run, 'doubts', (doubts and doubts .. '\n' or '') .. ARGV[4])
end
redis.call('HDEL', run, 'asking', 'asked', 'asked_at', 'answered')
emit('receipts_compared', 'error', ARGV[4])
return 1
