-- Suspend a run: no further step is claimed, except always steps.
--
-- FROM     running, aborting or undoing, in the epoch given, if one is
-- ARGV[1]  cause: breaker or regressed  ARGV[2]  reason  ARGV[3]  service that is down, or ''
-- ARGV[4]  epoch, or ''  ARGV[5]  version that the run had reached before Redis lost writes, or ''
-- RETURNS  1 suspended, 0 the run cannot be suspended now
-- EVENTS   run_suspended, run_regressed (where the run cannot be suspended)
local state, epoch = unpack(redis.call('HMGET', run, 'state', 'epoch'))
-- guard: a run is suspended only in the epoch that the worker has read
if ARGV[4] ~= '' and (epoch or '0') ~= ARGV[4] then
  return 0
end
-- guard: new versions are higher than all lost versions
if ARGV[5] ~= '' and tonumber(redis.call('HGET', run, 'version') or 0) < tonumber(ARGV[5]) then
  -- Later versions are higher than all lost ones.
  redis.call('HSET', run, 'version', ARGV[5])
-- guard: a loss of writes suspends a run once
elseif ARGV[5] ~= '' then
  return 0
end
-- guard: a breaker does not release a run that waits for a person
if state == 'suspended' and ARGV[1] == 'breaker' then
  return 1
end
-- guard: a pending or finishing or ended run is not suspended
if state ~= 'running' and state ~= 'aborting' and state ~= 'undoing' and state ~= 'suspended' then
  if ARGV[5] ~= '' and state then
    emit('run_regressed', 'error', ARGV[2])
  end
  return 0
end
suspend(ARGV[1], ARGV[2], ARGV[3])
return 1
