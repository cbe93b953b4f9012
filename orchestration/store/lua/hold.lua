-- Record why a run does not begin.
--
-- FROM     pending
-- ARGV[1]  reason
-- RETURNS  1 recorded, 0 recorded before, or the run has begun
-- EVENTS   run_held
local state, held = unpack(redis.call('HMGET', run, 'state', 'hold_reason'))
-- guard: a run that has begun gets no pending reason
if state ~= 'pending'
    -- guard: a pending reason is recorded once
    or held == ARGV[1] then
  return 0
end
redis.call('HSET', run, 'hold_reason', ARGV[1])
emit('run_held', 'error', ARGV[1])
return 1
