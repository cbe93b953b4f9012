-- Move the times that a run waits for, by the jumps of Redis's clock since the last move.
-- A time that was written after the jump stays: no time may lie farther ahead than its own delay.
--
-- FROM     any state, as of an earlier jump
-- ARGV[1]  number of all jumps  ARGV[2]  sum of all jumps, ms  ARGV[3]  lease ms
-- ARGV[4]  timeout of the whole compensation, ms
-- RETURNS  1 moved, 0 moved before, or no record
-- EVENTS   clock_jumped
local known, sum, timeout = unpack(redis.call('HMGET', run, 'jumps', 'jumped', 'timeout'))
if redis.call('EXISTS', run) == 0
    -- guard: a clock jump moves the deadlines of a run once
    or tonumber(ARGV[1]) <= tonumber(known or 0) then
  return 0
end
local by = tonumber(ARGV[2]) - tonumber(sum or 0)
-- `ahead` is the longest distance from now at which the time can lie.
local function moved(time, ahead)
  if by > 0 then
    return math.max(time, math.min(time + by, now + ahead))
  end
  return time > now + ahead and time + by or time
end
-- A message with a longer grace than a lease is sent again early, which does no harm.
local longest = {sent = 0, sent_until = tonumber(ARGV[3]), not_before = 0, delayed = 0}
local values = redis.call('HGETALL', steps)
for n = 1, #values, 2 do
  local side, name, i = string.match(values[n], '^(u?)([%a_]+):(.+)$')
  if longest[name]
      -- guard: a message that is due at once stays due
      and tonumber(values[n + 1]) > 0 then
    local status, delay = unpack(redis.call('HMGET', steps, side .. 'status:' .. i, side .. 'delay:' .. i))
    local ahead = longest[name] + (status == 'retrying' and name ~= 'delayed' and tonumber(delay or 0) or 0)
    redis.call('HSET', steps, values[n], string.format('%.0f', moved(tonumber(values[n + 1]), ahead)))
  end
end
local fields = redis.call('HGETALL', run)
for n = 1, #fields, 2 do
  local name = fields[n]
  local ahead = name == 'deadline' and timeout or name == 'undo_deadline' and ARGV[4]
                or (string.match(name, '^claimed') or name == 'opened' or name == 'asked_at') and 0
  if ahead then
    redis.call('HSET', run, name, string.format('%.0f', moved(tonumber(fields[n + 1]), tonumber(ahead))))
  end
end
for _, key in ipairs({leases, waits}) do
  local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for n = 1, #members, 2 do
    local side, i = string.match(members[n], '^(u?)(.+)$')
    local ahead = key == leases and ARGV[3] or redis.call('HGET', steps, side .. 'delay:' .. i) or 0
    redis.call('ZADD', key, string.format('%.0f', moved(tonumber(members[n + 1]), tonumber(ahead))), members[n])
  end
end
-- The creation by the clock as it is now, with which the start of the server is compared.
local since = tonumber(redis.call('HGET', run, 'since') or redis.call('HGET', run, 'created') or now)
redis.call('HSET', run, 'jumps', ARGV[1], 'jumped', ARGV[2], 'since', string.format('%.0f', since + by))
emit('clock_jumped', 'ms', string.format('%.0f', by))
return 1
