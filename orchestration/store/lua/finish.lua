-- End a run for good.
--
-- FROM     the state that the caller decided from, with nothing of its batch left and nothing running
-- ARGV[1]  state it comes from  ARGV[2]  state it ends in  ARGV[3]  the run's epoch, then the indices of
--          steps that were never run
-- RETURNS  1 done, 0 somebody else was first
-- EVENTS   run_ended
-- guard: a run ends only from the state that was seen
if redis.call('HGET', run, 'state') ~= ARGV[1]
    -- guard: a run does not end while an attempt runs
    or redis.call('ZCARD', leases) > 0 then
  return 0
end
-- A run that was reopened since is in the same state, and another one.
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
