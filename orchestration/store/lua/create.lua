-- Create the record of a run, once, and its entries in the indices and in the audit trail; admit a run without limits.
--
-- KEYS 6…    live, runs, inbox, clock, audit, and to admit the run too: queue, new, admitted, the set of its plan
-- FROM       no record
-- ARGV[1]    run   ARGV[2] score of its entry in the inbox, '' for none   ARGV[3] ms until its first sweep
-- ARGV[4]    entries that the audit trail keeps   ARGV[5] number of the fields of its audit entry, then those fields
--            with their values, then field, value, … of the run's hash
-- RETURNS    {1 created | 0 the record existed already, the fields of the run's hash}
-- EVENTS     run_created
local live, runs, inbox, clock_hash, audit, queue, new, admitted, of_plan = unpack(apart)
local first = 6 + 2 * tonumber(ARGV[5])
local created = redis.call('EXISTS', run) == 0
-- guard: a run is created once; without it: true
if created then
  redis.call('ZADD', live, now + tonumber(ARGV[3]), ARGV[1])
  redis.call('ZADD', runs, 'NX', now, ARGV[1])
  redis.call('HSET', run, 'state', 'pending', 'level', -1, 'left', 0, 'created', now, 'version', 1, unpack(ARGV, first))
  local jumps, jumped = unpack(redis.call('HMGET', clock_hash, 'jumps', 'jumped'))
  if jumps then
    redis.call('HSET', run, 'jumps', jumps, 'jumped', jumped)
  end
  local plan, actor = unpack(redis.call('HMGET', run, 'plan', 'actor'))
  emit_as(1, 'run_created', 'plan', plan, 'actor', actor or '')
  if queue then
    redis.call('ZREM', queue, ARGV[1])
    redis.call('ZREM', new, ARGV[1])
    redis.call('ZADD', admitted, now, ARGV[1])
    redis.call('SADD', of_plan, ARGV[1])
  end
  if first > 6 then
    redis.call('XADD', audit, 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, 6, first - 1))
  end
end
-- The live run is swept from now on. A command that was stored since has another score.
-- guard: a run with a new command stays in the inbox; without it: ARGV[2] ~= ''
if ARGV[2] ~= '' and tonumber(redis.call('ZSCORE', inbox, ARGV[1]) or -1) == tonumber(ARGV[2]) then
  redis.call('ZREM', inbox, ARGV[1])
end
return {created and 1 or 0, redis.call('HGETALL', run)}
