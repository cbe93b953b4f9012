-- Store a request and append its run to the queue, once; send the run's first message, unless its key is held.
--
-- KEYS     request, inbox, queue, admission requests, counter of their order, the run's commands, new runs
-- ARGV[1]  run  ARGV[2]  request  ARGV[3]  score in the inbox  ARGV[4]  admission request, JSON
-- ARGV[5]  limit of queued runs, '' for none
-- ARGV[6]  list of the message's queue: no key of the script, which a client would need the right to read
-- ARGV[7]  message, '' for none; with a message, for a run that waits for its concurrency key:
-- ARGV[8]  limit of the key, '' for none  ARGV[9] slot of the key  ARGV[10] queue of the key  ARGV[11] queues in use
-- RETURNS  {'there', the earlier request}, {'full', number of queued runs}, or {'ok', ''}
local there = redis.call('GET', KEYS[1])
-- guard: a run is submitted once
if there then
  redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
  return {'there', there}
end
local waiting = redis.call('ZCARD', KEYS[3])
-- guard: no more runs wait than the limit allows
if ARGV[5] ~= '' and waiting >= tonumber(ARGV[5]) then
  return {'full', waiting}
end
redis.call('SET', KEYS[1], ARGV[2])
-- guard: commands of a deleted run with the same id are deleted
redis.call('DEL', KEYS[6])  -- the commands of a pruned run of this id
redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
local order = redis.call('INCR', KEYS[5])
redis.call('ZADD', KEYS[3], order, ARGV[1])
redis.call('ZADD', KEYS[7], order, ARGV[1])
-- Only the inbox makes a worker read the request.
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
if ARGV[7] == '' then
  return {'ok', ''}
end
-- A held key is released later, and then the run at the head of its queue gets a message. A message now would do nothing
-- but delay the messages of other runs. The inbox makes a sweep create the record.
-- guard: a run gets its first message if its concurrency key is free; without it: ARGV[8] ~= ''
if ARGV[8] ~= '' and redis.call('SCARD', ARGV[9]) >= tonumber(ARGV[8]) then
  redis.call('ZREM', KEYS[7], ARGV[1])
  redis.call('ZADD', ARGV[10], order, ARGV[1])
  redis.call('SADD', ARGV[11], ARGV[10])
else
  redis.call('LPUSH', ARGV[6], ARGV[7])
end
return {'ok', ''}
