-- Take a step away from an attempt whose lease has run out.
--
-- FROM     running (undoing) with a lease that ended before now
-- ARGV[1]  index  ARGV[2]  '' or 'u'  ARGV[3]  '1' if it may be done again  ARGV[4]  how often at most
-- RETURNS  'again' it is ready once more, 'unknown' it must be recorded as such, 'no' the lease is alive
-- EVENTS   lease_lost
local i, p = ARGV[1], ARGV[2]
local ends = redis.call('ZSCORE', leases, p .. i)
if not ends or tonumber(ends) > now then
  return 'no'
end
local lost = redis.call('HINCRBY', steps, p .. 'l:' .. i, 1)
emit('lease_lost', 'step', i, 'undo', p, 'owner', redis.call('HGET', steps, p .. 'w:' .. i) or '', 'lost', lost)
-- A new fence: whatever the lost attempt still says is refused.
local fence = tonumber(redis.call('HGET', steps, p .. 'f:' .. i) or 0)
redis.call('HSET', steps, p .. 'f:' .. i, string.format('%.0f', math.max(fence + 1, clock[1] * 1000000 + clock[2])),
           p .. 's:' .. i, 'ready', p .. 'd:' .. i, 0, p .. 'q:' .. i, now)
redis.call('ZREM', leases, p .. i)
local state = redis.call('HGET', run, 'state')
if ARGV[3] == '1' and lost < tonumber(ARGV[4]) and state ~= 'aborting' then
  return 'again'
end
return 'unknown'
