-- Open a level: its steps become ready, are fanned out, are skipped, or fail before they begin.
--
-- FROM     the state and level that the caller decided from, with no step of that batch left
-- ARGV[1]  former state             ARGV[2]  former level
-- ARGV[3]  new state                ARGV[4]  new level
-- ARGV[5]  epoch                    ARGV[6]  index of the step whose failure aborts the run, or ''
-- ARGV[7]  number of the steps whose items `store_units` has stored, then index, token, units for each,
--          then for each step one of
--            'r', index, host or ''                           becomes ready
--            's', index, reason, '1' if for a dependency      is skipped
--            'f', index, outcome JSON, error                  failed before it began
--            'x', index, units, concurrent units, tolerated failures, canaries or 0,
--                 number of the skipped units, number of the items that follow, 0 where they are stored,
--                 then item JSON, host, reason for each skipped unit, then item JSON, host or '' for each item
-- RETURNS  1 opened, 0 a concurrent transition was first
-- EVENTS   run_started (from pending), level_started, step_skipped, step_ended (failed), step_started
--          (fanned out), item_skipped, run_aborting
local state, level, epoch, open, version, timeout = unpack(redis.call('HMGET', run, 'state', 'level', 'epoch', 'left',
  'version', 'timeout'))
-- guard: a level opens only in the state that the worker has read
if state ~= ARGV[1]
    -- guard: a level opens once
    or level ~= ARGV[2]
    -- guard: an older decision opens no level of a reopened run
    or (epoch or '0') ~= ARGV[5] then
  return 0
end
-- guard: a level waits for the previous level
if state ~= 'aborting' and tonumber(open) > 0 then
  return 0
end
-- guard: the always steps of an aborting run wait for running attempts
if state == 'aborting' and redis.call('ZCARD', leases) > 0 then
  return 0
end
for n = 8, 7 + 3 * tonumber(ARGV[7]), 3 do
  local known, stored = unpack(redis.call('HMGET', steps, 'fan_out:' .. ARGV[n], 'fan_out_stored:' .. ARGV[n]))
  -- guard: a level opens only with all items of one guard decision; without it: false
  if not known and stored ~= ARGV[n + 1] .. ' ' .. ARGV[n + 2] then
    return 0
  end
end
local left, begun, later, whole = 0, {}, {}, {}

-- The reasons of skipped units, by item and host; a new reason counts for known units, too. nil where no unit is skipped.
local function reasons_of(skipped, first)
  local found
  for n = first, first + 3 * (skipped - 1), 3 do
    found = found or {}
    found[ARGV[n] .. '\n' .. ARGV[n + 1]] = ARGV[n + 2]
  end
  return found
end

-- Ends the open units of a step that is skipped or fails before they begin.
local function close_units(i, status, why)
  for u = 0, tonumber(redis.call('HGET', steps, 'fan_out:' .. i) or 0) - 1 do
    local id = i .. '.' .. u
    if redis.call('HEXISTS', steps, 'status:' .. id) == 0 then
      redis.call('HSET', steps, 'status:' .. id, status, 'reason:' .. id, why, 'ended:' .. id, now)
    end
  end
end

-- Dispatches as many units as may run concurrently, canaries first, and holds the others back. A step that continues
-- after an abort or a resume does so with the units that have not ended. Returns whether any unit is open.
local function fan_out(i, units, at_once, tolerated, canaries, skips, items, first)
  local known, why, open, skipped = redis.call('HGET', steps, 'fan_out:' .. i), reasons_of(skips, first), 0, 0
  if not known then
    local writes = collected()
    writes.add('fan_out:' .. i, units)
    writes.add('tolerated:' .. i, tolerated)
    writes.add('attempts:' .. i, 1)
    writes.add('started:' .. i, now)
    first = first + 3 * skips
    for u = 0, items - 1 do
      local id = i .. '.' .. u
      writes.add('item:' .. id, ARGV[first + 2 * u])
      if ARGV[first + 2 * u + 1] ~= '' then
        writes.add('host:' .. id, ARGV[first + 2 * u + 1])
      end
    end
    writes.flush()
  end
  local last = tonumber(known or units) - 1
  local statuses = known and statuses_of(i, 0, last) or {}
  for u = 0, last do
    local id, status = i .. '.' .. u, statuses[u]
    local host, reason
    if why and not status then
      local item
      item, host = unpack(redis.call('HMGET', steps, 'item:' .. id, 'host:' .. id))
      reason = why[(item or '') .. '\n' .. (host or '')]
    end
    -- guard: a skipped unit gets no message
    if reason then
      status = 'skipped'
      redis.call('HSET', steps, 'status:' .. id, status, 'reason:' .. id, reason)
      later[#later + 1] = {'item_skipped', 'step', id, 'host', host or '', 'reason', reason}
    end
    if not status then
      open = open + 1
    elseif status == 'skipped' then
      skipped = skipped + 1
    end
  end
  -- guard: no more units are dispatched than may run at the same time; without it: open
  local begin = math.min(at_once, open)
  -- guard: a step has no more canaries than units
  canaries = math.min(canaries, open)
  if canaries > 0 then
    -- guard: canaries are dispatched first
    begin = math.min(at_once, canaries)
    redis.call('HSET', steps, 'canaries:' .. i, canaries, 'canaries_held:' .. i, canaries - begin)
  else
    redis.call('HDEL', steps, 'canaries:' .. i)
  end
  redis.call('HDEL', steps, 'canary_failed:' .. i, 'fan_out_stored:' .. i, 'fan_out_due:' .. i)
  redis.call('HSET', steps, 'status:' .. i, 'running', 'fan_out_left:' .. i, open, 'fan_out_skipped:' .. i, skipped,
             'fan_out_sent:' .. i, 0, 'at_once:' .. i, at_once)
  dispatch_units(i, begin, true)
  return open > 0
end

local n, writes = 8 + 3 * tonumber(ARGV[7]), collected()
while n <= #ARGV do
  local what, i = ARGV[n], ARGV[n + 1]
  if what == 'r' then
    writes.dispatched(i, true)
    if ARGV[n + 2] ~= '' then
      writes.add('host:' .. i, ARGV[n + 2])
    end
    begun[#begun + 1], left, n = i, left + 1, n + 3
  elseif what == 's' then
    redis.call('HSET', steps, 'status:' .. i, 'skipped', 'reason:' .. i, ARGV[n + 2])
    -- guard: a skipped step skips its units that have not ended
    close_units(i, 'skipped', ARGV[n + 2])
    if ARGV[n + 3] == '1' then
      redis.call('HSET', steps, 'tainted:' .. i, 1)
    end
    later[#later + 1] = {'step_skipped', 'step', i, 'reason', ARGV[n + 2]}
    n = n + 4
  elseif what == 'f' then
    redis.call('HSET', steps, 'status:' .. i, 'failed', 'outcome:' .. i, ARGV[n + 2], 'ended:' .. i, now)
    -- guard: the remaining units of a step that fails before it begins do not run
    close_units(i, 'not_run', ARGV[n + 3])
    later[#later + 1] = {'step_ended', 'step', i, 'status', 'failed', 'error', ARGV[n + 3]}
    if i == ARGV[6] then
      later.err = ARGV[n + 3]
    end
    n = n + 4
  else
    local units, skips, items = tonumber(ARGV[n + 2]), tonumber(ARGV[n + 6]), tonumber(ARGV[n + 7])
    if fan_out(i, units, tonumber(ARGV[n + 3]), ARGV[n + 4], tonumber(ARGV[n + 5]), skips, items, n + 8) then
      later[#later + 1] = {'step_started', 'step', i, 'attempt', 1, 'items', units}
      begun[#begun + 1], left = i, left + 1
    else
      -- All hosts skip the step, or a person has resolved its last open units.
      whole[#whole + 1] = i
    end
    n = n + 8 + 3 * skips + 2 * items
  end
end
writes.flush()
version = version + 1
-- Steps without a time of their own were sent at the time `opened`.
local fields = {'state', ARGV[3], 'level', ARGV[4], 'left', left, 'opened', now}
if state == 'pending' then
  fields[#fields + 1], fields[#fields + 2] = 'started', now
  -- The timeout of the run begins here, and a suspension does not extend it.
  if timeout then
    fields[#fields + 1], fields[#fields + 2] = 'deadline', now + tonumber(timeout)
  end
  redis.call('HDEL', run, 'hold_reason')
  emit_as(version, 'run_started')
  version = version + 1
elseif state ~= ARGV[3] then
  emit_as(version, 'run_' .. ARGV[3])
  version = version + 1
end
redis.call('HSET', run, 'version', version, unpack(fields))
emit_as(version, 'level_started', 'level', ARGV[4], 'steps', table.concat(begun, ' '))
for _, event in ipairs(later) do
  emit(unpack(event))
end
for _, i in ipairs(whole) do
  whole_ended(i)
end
if ARGV[6] ~= '' then
  stop(ARGV[6], later.err)
end
return 1
