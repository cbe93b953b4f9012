-- Create the record of a run, once.
--
-- FROM       no record
-- ARGV[1..]  field, value, … of the run's hash
-- RETURNS    1 created, 0 the record existed already
-- EVENTS     run_created
-- guard: a run is created once
if redis.call('EXISTS', run) == 1 then
  return 0
end
redis.call('HSET', run, 'state', 'pending', 'level', -1, 'left', 0, 'created', now, unpack(ARGV))
emit('run_created', 'plan', redis.call('HGET', run, 'plan'), 'actor', redis.call('HGET', run, 'actor') or '')
return 1
