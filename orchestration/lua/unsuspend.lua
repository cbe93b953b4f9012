-- Let a suspended run go on: what was dispatched and not claimed is due now, and its time begins anew.
--
-- FROM     suspended for the reason given, in the epoch given
-- ARGV[1]  for what it was: breaker, unknown, regressed  ARGV[2]  epoch  ARGV[3]  'u' while undoing, else '', then
--          the ids of its batch
-- RETURNS  1 it goes on, 0 somebody else was first
-- EVENTS   run_resumed
local state, was, hold, epoch = unpack(redis.call('HMGET', run, 'state', 'was', 'hold', 'epoch'))
if state ~= 'suspended' or hold ~= ARGV[1] or (epoch or '0') ~= ARGV[2] then
  return 0
end
local p = ARGV[3]
for n = 4, #ARGV do
  local i = ARGV[n]
  local status = redis.call('HGET', steps, p .. 's:' .. i)
  if status == 'ready' or status == 'retrying' then
    redis.call('HSET', steps, p .. 'q:' .. i, now, p .. 'd:' .. i, 0, p .. 'n:' .. i, now)
  end
end
redis.call('HSET', run, 'state', was)
lift()
emit('run_resumed', 'for', hold)
return 1
