-- Put down that a run is wanted, once, at the end of the queue.
--
-- KEYS     request, inbox, queue, what is known of runs, counter of their order, the run's commands
-- ARGV[1]  run  ARGV[2]  request  ARGV[3]  mark in the inbox  ARGV[4]  what is to be known of it, JSON
-- ARGV[5]  how many may wait, '' for any number
-- RETURNS  {'there', the request that was there before}, {'full', how many wait}, or {'ok', ''}
local there = redis.call('GET', KEYS[1])
-- guard: a run is submitted once
if there then
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
  return {'there', there}
end
local waiting = redis.call('ZCARD', KEYS[3])
-- guard: no more runs wait than may
if ARGV[5] ~= '' and waiting >= tonumber(ARGV[5]) then
  return {'full', waiting}
end
redis.call('SET', KEYS[1], ARGV[2])
-- guard: commands of a forgotten run are deleted
redis.call('DEL', KEYS[6])  -- what was asked of a forgotten run of this id
redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
redis.call('ZADD', KEYS[3], redis.call('INCR', KEYS[5]), ARGV[1])
-- A request that nobody knows of would never be looked at.
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return {'ok', ''}
