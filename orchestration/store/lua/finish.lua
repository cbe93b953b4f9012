-- End a run in a terminal state.
--
-- FROM     the state that the caller decided from, with no step of its batch left and no attempt running
-- ARGV[1]  former state  ARGV[2]  terminal state  ARGV[3]  epoch, then the indices of the steps that were not run
-- RETURNS  1 ended, 0 a concurrent transition was first
-- EVENTS   run_ended
-- guard: a run ends only from the state that was seen
if redis.call('HGET', run, 'state') ~= ARGV[1]
    -- guard: a run does not end while an attempt runs
    or redis.call('ZCARD', leases) > 0 then
  return 0
end
-- A run that was reopened may have returned to the same state, in another epoch.
-- guard: a reopened run is not ended by an older decision
if (redis.call('HGET', run, 'epoch') or '0') ~= ARGV[3] then
  return 0
end
-- guard: a run does not end while a step of its level is left
if ARGV[1] ~= 'aborting' and tonumber(redis.call('HGET', run, 'left')) > 0 then
  return 0
end
for n = 4, #ARGV do
  redis.call('HSET', steps, 'status:' .. ARGV[n], 'not_run')
end
redis.call('HSET', run, 'state', ARGV[2], 'left', 0, 'ended', now)
emit('run_ended', 'state', ARGV[2], 'cause', redis.call('HGET', run, 'cause') or '')
return 1
