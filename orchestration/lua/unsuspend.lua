-- Let a suspended run go on: what was dispatched and not claimed is due again, and its time begins anew.
--
-- FROM     suspended for the reason given, in the epoch given
-- ARGV[1]  for what it was: breaker, unknown, regressed  ARGV[2]  epoch  ARGV[3]  'u' while undoing, else ''
-- ARGV[4]  ms until what was dispatched is due, then the ids of its batch
-- RETURNS  1 it goes on, 0 somebody else was first
-- EVENTS   run_resumed
local state, was, hold, epoch = unpack(redis.call('HMGET', run, 'state', 'was', 'hold', 'epoch'))
if state ~= 'suspended' or hold ~= ARGV[1] or (epoch or '0') ~= ARGV[2] then
  return 0
end
local p, due = ARGV[3], now + tonumber(ARGV[4])
for n = 5, #ARGV do
  local i = ARGV[n]
  local status = redis.call('HGET', steps, p .. 's:' .. i)
  if status == 'ready' or status == 'retrying' then
    redis.call('HSET', steps, p .. 'q:' .. i, due, p .. 'd:' .. i, due, p .. 'n:' .. i, due)
  end
end
redis.call('HSET', run, 'state', was)
lift()
emit('run_resumed', 'for', hold)
return 1
