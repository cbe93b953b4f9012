-- Begin the record of a run, once.
--
-- FROM       nothing: there is no record of the run
-- ARGV[1..]  field, value, … of the run's hash
-- RETURNS    1 created, 0 it was there already
-- EVENTS     run_created
-- guard: a run is created once
if redis.call('EXISTS', run) == 1 then
  return 0
end
redis.call('HSET', run, 'state', 'pending', 'level', -1, 'left', 0, 'created', now, unpack(ARGV))
emit('run_created', 'plan', redis.call('HGET', run, 'plan'), 'actor', redis.call('HGET', run, 'actor') or '')
return 1
