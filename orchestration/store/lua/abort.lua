-- Abort a run: no further step is claimed, and running attempts are asked to stop.
--
-- FROM     running, or suspended there
-- ARGV[1]  cause  ARGV[2]  error  ARGV[3]  actor  ARGV[4]  '1' to keep the effects of completed steps
-- RETURNS  1 aborted, 0 the run is not running
-- EVENTS   run_aborting
-- guard: a run that has ended is not aborted
-- guard: a suspended run is aborted; without it: redis.call('HGET', run, 'state') ~= 'running'
if doing() ~= 'running' then
  return 0
end
redis.call('HSET', run, 'state', 'aborting', 'cause', ARGV[1], 'err', ARGV[2])
lift()
if ARGV[4] == '1' then
  redis.call('HSET', run, 'keep', 1)
end
emit('run_aborting', 'cause', ARGV[1], 'actor', ARGV[3])
return 1
