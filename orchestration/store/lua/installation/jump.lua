-- Record a jump of Redis's clock, once, and schedule a sweep of every live run, since its due time may have moved.
--
-- KEYS[1] clock  KEYS[2] live  KEYS[3] ended, whose times are moved so that the retention stays the same
-- ARGV[1] number of jumps that the caller knows  ARGV[2] ms of this jump
-- RETURNS 1 recorded, 0 another sweeper has recorded a jump
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
