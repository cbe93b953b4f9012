-- Say why a run does not begin.
--
-- FROM     pending
-- ARGV[1]  why
-- RETURNS  1 said, 0 it was said already, or the run has begun
-- EVENTS   run_held
local state, held = unpack(redis.call('HMGET', run, 'state', 'hold_reason'))
-- guard: a run that has begun is not held
if state ~= 'pending'
    -- guard: a run is held once for one reason
    or held == ARGV[1] then
  return 0
end
redis.call('HSET', run, 'hold_reason', ARGV[1])
emit('run_held', 'error', ARGV[1])
return 1
