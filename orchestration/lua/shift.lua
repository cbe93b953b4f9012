-- Move the times that a run waits for by as much as Redis's clock has jumped since they were last moved.
-- What was written after the jump is consistent already: no time lies farther ahead than it can have been put.
--
-- FROM     any
-- ARGV[1]  sum of all jumps, ms  ARGV[2]  lease ms  ARGV[3]  ms that the whole undo may take
-- RETURNS  1 moved, 0 there was nothing to move
-- EVENTS   clock_jumped
local by = tonumber(ARGV[1]) - tonumber(redis.call('HGET', run, 'jumped') or 0)
-- guard: a jump moves a run once
if by == 0 or redis.call('EXISTS', run) == 0 then
  return 0
end
-- `ahead`: how far from now the time can lie at most, where that is known.
local function moved(time, ahead)
  time = tonumber(time)
  if not ahead then
    return time + by
  elseif by > 0 then
    return math.max(time, math.min(time + by, now + ahead))
  end
  return time > now + ahead and time + by or time
end
local lease, longest = tonumber(ARGV[2]), 600000
local ahead = {q = 0, d = longest, ds = 0}
local values = redis.call('HGETALL', steps)
for n = 1, #values, 2 do
  local side, name, i = string.match(values[n], '^(u?)(%a+):(.+)$')
  -- What is due at once has no time.
  if (ahead[name] or name == 'n')
      -- guard: what is due at once stays so
      and tonumber(values[n + 1]) > 0 then
    local parked = redis.call('HGET', steps, side .. 's:' .. i) == 'retrying'
    redis.call('HSET', steps, values[n], string.format('%.0f', moved(values[n + 1], not parked and ahead[name])))
  end
end
local fields = redis.call('HGETALL', run)
local timeout = tonumber(redis.call('HGET', run, 'timeout') or '')
for n = 1, #fields, 2 do
  local name, time = fields[n], fields[n + 1]
  local known = name == 'deadline' and timeout or name == 'undo_deadline' and tonumber(ARGV[3])
                or (string.match(name, '^claimed') or name == 'asked_at') and 0 or nil
  if known or name == 'deadline' then
    redis.call('HSET', run, name, string.format('%.0f', moved(time, known)))
  end
end
for key, known in pairs({[leases] = lease, [waits] = false}) do
  local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  for n = 1, #members, 2 do
    local time = moved(members[n + 1], known)
    -- What would have run out was put there after the jump.
    if known or by > 0 or time > now then
      redis.call('ZADD', key, string.format('%.0f', time), members[n])
    end
  end
end
redis.call('HSET', run, 'jumped', ARGV[1])
emit('clock_jumped', 'ms', by)
return 1
