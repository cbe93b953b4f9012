-- Let a run begin, if there is room for it.
--
-- KEYS     queue, admitted runs, those of its plan, those that hold its key
-- ARGV[1]  run  ARGV[2]  how many may be live, '' for any number  ARGV[3]  how many of its plan  ARGV[4]  how many
--          with its key  ARGV[5]  the run that it is a part of, or ''  ARGV[6]  '1' whether there is room or not
-- RETURNS  'ok', or what there is no room in: 'all', 'plan', 'key'
local run, parent = ARGV[1], ARGV[5]
if redis.call('ZSCORE', KEYS[2], run) then
  redis.call('ZREM', KEYS[1], run)
  return 'ok'
end
-- A run that is part of another has its place already.
if ARGV[6] ~= '1' then
  if ARGV[2] ~= '' and parent == '' and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) then
    return 'all'
  end
  if ARGV[3] ~= '' and parent == '' and redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[3]) then
    return 'plan'
  end
  if ARGV[4] ~= '' and redis.call('SISMEMBER', KEYS[4], parent) == 0
      and redis.call('SCARD', KEYS[4]) >= tonumber(ARGV[4]) then
    return 'key'
  end
end
local clock = redis.call('TIME')
if parent == '' then
  redis.call('ZADD', KEYS[2], clock[1] * 1000 + math.floor(clock[2] / 1000), run)
  redis.call('SADD', KEYS[3], run)
end
if ARGV[4] ~= '' and redis.call('SISMEMBER', KEYS[4], parent) == 0 then
  redis.call('SADD', KEYS[4], run)
end
redis.call('ZREM', KEYS[1], run)
return 'ok'
