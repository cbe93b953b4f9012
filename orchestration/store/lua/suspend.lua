-- Hold a run where it is: nothing new is claimed, but its always steps.
--
-- FROM     running, aborting or undoing, in the epoch given, if one is
-- ARGV[1]  for what: breaker, or regressed  ARGV[2]  why  ARGV[3]  the service that is down, or ''
-- ARGV[4]  epoch, or ''  ARGV[5]  a version that the run had already reached, or ''
-- RETURNS  1 it is suspended, 0 it is not where it could be
-- EVENTS   run_suspended, run_regressed (where it cannot be held)
local state, epoch = unpack(redis.call('HMGET', run, 'state', 'epoch'))
-- guard: only the epoch that was seen is suspended
if ARGV[4] ~= '' and (epoch or '0') ~= ARGV[4] then
  return 0
end
-- guard: a lost version is not reached again
if ARGV[5] ~= '' and tonumber(redis.call('HGET', run, 'version') or 0) < tonumber(ARGV[5]) then
  -- What comes now is newer than all that was lost.
  redis.call('HSET', run, 'version', ARGV[5])
-- guard: a loss of writes suspends a run once
elseif ARGV[5] ~= '' then
  return 0
end
-- guard: a breaker does not release a run that waits for a person
if state == 'suspended' and ARGV[1] == 'breaker' then
  return 1
end
-- guard: a resting or finishing run is not suspended
if state ~= 'running' and state ~= 'aborting' and state ~= 'undoing' and state ~= 'suspended' then
  if ARGV[5] ~= '' and state then
    emit('run_regressed', 'error', ARGV[2])
  end
  return 0
end
suspend(ARGV[1], ARGV[2], ARGV[3])
return 1
