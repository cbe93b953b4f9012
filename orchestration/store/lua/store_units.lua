-- Store the items of a step with many units before its level opens.
-- A call stores a part of the items: one script with all would block Redis.
--
-- FROM     the state and level that the caller decided from
-- ARGV[1]  state  ARGV[2]  level  ARGV[3]  epoch  ARGV[4]  index of the step  ARGV[5]  token of the decision
-- ARGV[6]  number of the first unit, then item JSON, host or '' for each unit
-- RETURNS  1 stored, or the step has units already; 0 a concurrent transition or decision was first
-- EVENTS   none
local state, level, epoch = unpack(redis.call('HMGET', run, 'state', 'level', 'epoch'))
-- guard: items are stored only for the state that the worker has read
if state ~= ARGV[1] or level ~= ARGV[2] or (epoch or '0') ~= ARGV[3] then
  return 0
end
local i, first = ARGV[4], tonumber(ARGV[6])
local known, stored = unpack(redis.call('HMGET', steps, 'fan_out:' .. i, 'fan_out_stored:' .. i))
-- guard: a step that was fanned out keeps its items
if known then
  return 1
end
local units = (#ARGV - 6) / 2
local before, after = ARGV[5] .. ' ' .. first, ARGV[5] .. ' ' .. first + units
-- The same part may come twice, where the reply to the first call was lost.
-- guard: the items of two guard decisions are not mixed
if first > 0 and stored ~= before and stored ~= after then
  return 0
end
local writes, hostless = collected(), {}
for u = 0, units - 1 do
  local id = i .. '.' .. first + u
  writes.add('item:' .. id, ARGV[7 + 2 * u])
  if ARGV[8 + 2 * u] ~= '' then
    writes.add('host:' .. id, ARGV[8 + 2 * u])
  elseif stored then
    hostless[#hostless + 1] = 'host:' .. id
  end
end
writes.add('fan_out_stored:' .. i, after)
writes.flush()
if #hostless > 0 then
  -- guard: no unit keeps the host of another guard decision
  redis.call('HDEL', steps, unpack(hostless))
end
return 1
