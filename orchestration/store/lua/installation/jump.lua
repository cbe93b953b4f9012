-- Note a jump of Redis's clock, once; every live run is looked at next, for none may wait for a time that was moved.
--
-- KEYS[1] clock  KEYS[2] live  KEYS[3] ended: what rests is kept as long as before
-- ARGV[1] number of the jumps that the caller knows  ARGV[2] ms of this jump
-- RETURNS 1 noted, 0 another sweeper has noted it
-- guard: a jump is counted once
if (redis.call('HGET', KEYS[1], 'jumps') or '0') ~= ARGV[1] then
  return 0
end
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
redis.call('HINCRBY', KEYS[1], 'jumped', ARGV[2])
redis.call('HINCRBY', KEYS[1], 'jumps', 1)
redis.call('HSET', KEYS[1], 'by', ARGV[2], 'at', now)
for _, run in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. string.format('%.0f', now), '+inf')) do
  redis.call('ZADD', KEYS[2], 'XX', now, run)
end
local rests = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
for n = 1, #rests, 2 do
  redis.call('ZADD', KEYS[3], string.format('%.0f', math.min(rests[n + 1] + ARGV[2], now)), rests[n])
end
return 1
