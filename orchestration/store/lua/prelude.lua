-- The code at the beginning of every script: its keys, Redis's clock, and shared functions; `emit` and `emit_as` alone
-- write events.
--
-- The id of a step is its index; that of a unit of a fanned-out step is `<index>.<unit>`.
--
-- KEYS[1] run     hash    state, level, left, …
-- KEYS[2] steps   hash    <field>:<id>; fields of an undo have the prefix u
-- KEYS[3] leases  zset    <id> or u<id> → when the lease ends, ms
-- KEYS[4] events  stream  the events of the run
-- KEYS[5] waits   zset    <id> or u<id> of a parked step → its time limit, ms
-- KEYS[6] and on, for `forget`: the side records
local run, steps, leases, events, waits = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local apart = {unpack(KEYS, 6)}
-- The longest run of a script stays short: a step dispatches at most so many units in one call.
local at_most_units = 1000
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Writes one event under a version that the caller counts, and stores with its other fields of the run.
local function emit_as(version, name, ...)
  redis.call('XADD', events, '*', 'event', name, 'version', version, 'at', now, ...)
end

-- Writes one event under the next version of the run.
local function emit(name, ...)
  emit_as(redis.call('HINCRBY', run, 'version', 1), name, ...)
end

-- Marks a step as dispatched; its message counts as under way for `grace` ms.
local function dispatched(prefix, id, grace)
  redis.call('HSET', steps, prefix .. 'status:' .. id, 'ready', prefix .. 'sent:' .. id, now,
             prefix .. 'sent_until:' .. id, now + grace)
end

-- The state of the run; of a suspended run, the state that it was suspended in.
local function doing()
  local state, was = unpack(redis.call('HMGET', run, 'state', 'suspended_state'))
  if state == 'suspended' then
    return was
  end
  return state
end

-- Reports whether a command was handled; commands are handled in order, up to `last_command`.
local function handled(id)
  local last = redis.call('HGET', run, 'last_command')
  if not last then
    return false
  end
  local a, b = string.match(last, '(%d+)-(%d+)')
  local c, d = string.match(id, '(%d+)-(%d+)')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  -- guard: commands of the same millisecond have an order; without it: c < a or (c == a and d == b)
  return c < a or (c == a and d <= b)
end

-- Records that a command was handled, and its answer.
local function answer(id, text)
  redis.call('HSET', run, 'last_command', id, 'answer', text)
  return text
end

-- Removes the fields of a suspension, before the run resumes or aborts.
local function lift()
  redis.call('HDEL', run, 'suspended_state', 'hold_reason', 'hold', 'service')
end

-- Suspends the run: no further step is claimed until a person, or the end of the cause `what`, resumes it.
local function suspend(what, why, service)
  local state = redis.call('HGET', run, 'state')
  if state ~= 'suspended' then
    redis.call('HSET', run, 'state', 'suspended', 'suspended_state', state)
  end
  redis.call('HSET', run, 'hold', what, 'hold_reason', why, 'service', service)
  emit('run_suspended', 'for', what, 'error', why)
end

-- Returns 1 where the run can continue now: no step of the batch is left, or, while aborting, no attempt runs.
local function can_advance(state)
  if state == 'aborting' then
    return redis.call('ZCARD', leases) == 0 and 1 or 0
  end
  return tonumber(redis.call('HGET', run, 'left') or 0) <= 0 and 1 or 0
end

-- The step that a unit belongs to; nil for a step.
local function whole_of(id)
  return string.match(id, '^(%d+)%.%d+$')
end

-- The host that a unit was dispatched to, for events.
local function at(id)
  return whole_of(id) and redis.call('HGET', steps, 'host:' .. id) or ''
end

-- The prefix of events about a step, a unit or an undo.
local function kind(prefix, id)
  return prefix == 'u' and 'undo_' or whole_of(id) and 'item_' or 'step_'
end

-- Ends a step all of whose units have ended. Returns its status and error.
local function whole_ended(step)
  local all, failed, changed, cancelled, tolerated, first, skipped, canary = unpack(redis.call('HMGET', steps,
    'fan_out:' .. step, 'fan_out_failed:' .. step, 'fan_out_changed:' .. step, 'fan_out_cancelled:' .. step,
      'tolerated:' .. step, 'error:' .. step, 'fan_out_skipped:' .. step,
    'canary_failed:' .. step))
  failed = tonumber(failed or 0)
  -- guard: a step is skipped if all of its units are skipped
  if skipped == all then
    local why = 'all items were skipped; the first: ' .. redis.call('HGET', steps, 'reason:' .. step .. '.0')
    redis.call('HSET', steps, 'status:' .. step, 'skipped', 'reason:' .. step, why, 'ended:' .. step, now)
    emit('step_skipped', 'step', step, 'reason', why)
    return 'skipped', ''
  end
  local total, text = 'unchanged', ''
  if failed > 0 then
    text = failed .. ' of ' .. all .. ' failed; the first: ' .. first
    if canary then
      text = 'a canary failed, and the other items were not run: ' .. first
    end
    redis.call('HSET', steps, 'error:' .. step, text)
  end
  if failed > tonumber(tolerated)
      -- guard: a failed canary is not tolerated
      or canary then
    total = 'failed'
  elseif cancelled then
    total = 'cancelled'
  elseif changed then
    total = 'changed'
  end
  redis.call('HSET', steps, 'status:' .. step, total, 'ended:' .. step, now)
  emit('step_ended', 'step', step, 'status', total, 'error', text)
  return total, text
end

-- Ends the held-back units of a step whose canary has failed.
local function leave_the_rest(step)
  redis.call('HSET', steps, 'canary_failed:' .. step, 1)
  for u = 0, tonumber(redis.call('HGET', steps, 'fan_out:' .. step)) - 1 do
    local id = step .. '.' .. u
    if redis.call('HEXISTS', steps, 'status:' .. id) == 0 then
      redis.call('HSET', steps, 'status:' .. id, 'not_run', 'reason:' .. id, 'a canary failed', 'ended:' .. id, now)
      redis.call('HINCRBY', steps, 'fan_out_left:' .. step, -1)
      emit('item_ended', 'step', id, 'status', 'not_run', 'error', '')
    end
  end
end

-- Counts a final step, unit or undo, and writes its event. Returns the status and error of the whole step; nil while
-- other units of the step are unfinished.
local function ended(prefix, id, status, err)
  local unit = whole_of(id)
  if status == 'skipped' then
    redis.call('HSET', steps, 'reason:' .. id, err)
    if unit then
      emit('item_skipped', 'step', id, 'host', at(id), 'reason', err)
    else
      emit('step_skipped', 'step', id, 'reason', err)
    end
    err = ''
  elseif unit then
    emit(prefix == 'u' and 'undo_ended' or 'item_ended', 'step', id, 'host', at(id), 'status', status, 'error', err)
  else
    emit(prefix == 'u' and 'undo_ended' or 'step_ended', 'step', id, 'status', status, 'error', err)
  end
  local step = prefix == '' and unit
  if not step then
    redis.call('HINCRBY', run, 'left', -1)
    return status, err
  end
  local bad = status == 'failed' or status == 'unknown'
  local counter = bad and 'fan_out_failed:' or status == 'changed' and 'fan_out_changed:' or status == 'cancelled' and 'fan_out_cancelled:'
                  or status == 'skipped' and 'fan_out_skipped:' or nil
  if counter then
    redis.call('HINCRBY', steps, counter .. step, 1)
  end
  if bad then
    redis.call('HSETNX', steps, 'error:' .. step, err)
    if tonumber(redis.call('HGET', steps, 'canaries:' .. step) or 0) > 0 then
      -- guard: held back units do not run after a failed canary
      leave_the_rest(step)
    end
  end
  if redis.call('HINCRBY', steps, 'fan_out_left:' .. step, -1) > 0 then
    return nil
  end
  redis.call('HINCRBY', run, 'left', -1)
  return whole_ended(step)
end

-- Collects fields of the steps, and writes them in few calls: a level may have thousands of steps.
local function collected()
  local fields = {}
  local self = {}
  function self.flush()
    if #fields > 0 then
      redis.call('HSET', steps, unpack(fields))
      fields = {}
    end
  end
  function self.add(name, value)
    fields[#fields + 1], fields[#fields + 2] = name, value
    -- Lua unpacks about 8,000 values at most.
    if #fields >= 6000 then
      self.flush()
    end
  end
  -- Marks a step as dispatched for the first time: without `sent_until`, its message is under way for one lease.
  -- `with_level`: the step was sent as its level opened, and needs no time of its own.
  function self.dispatched(id, with_level)
    self.add('status:' .. id, 'ready')
    if not with_level then
      self.add('sent:' .. id, now)
    end
  end
  return self
end

-- The statuses of the units `first` to `last` of a step, by unit; false for a unit without one.
local function statuses_of(step, first, last)
  local found = {}
  for begin = first, last, 1000 do
    local names = {}
    for u = begin, math.min(begin + 999, last) do
      names[#names + 1] = 'status:' .. step .. '.' .. u
    end
    for n, status in ipairs(redis.call('HMGET', steps, unpack(names))) do
      found[begin + n - 1] = status
    end
  end
  return found
end

-- Dispatches up to `wanted` held-back units of a step. Returns their ids. Where these are more than one call dispatches,
-- the number of the others is stored; without a call for them, each begins at the end of another unit.
local function dispatch_units(step, wanted, with_level)
  local all, sent = unpack(redis.call('HMGET', steps, 'fan_out:' .. step, 'fan_out_sent:' .. step))
  local found, u, writes = {}, tonumber(sent), collected()
  local last = tonumber(all) - 1
  local known, read_to = {}, u - 1
  local at_most = math.min(wanted, at_most_units)
  -- Some units have ended already: in a step that is resumed, or on hosts that skip the step.
  while u <= last and #found < at_most do
    if u > read_to then
      read_to = math.min(u + math.max(at_most - #found, 16) - 1, last)
      known = statuses_of(step, u, read_to)
    end
    local begun = known[u]
    -- guard: a unit that has ended is not dispatched again; without it: true
    if not begun then
      writes.dispatched(step .. '.' .. u, with_level)
      found[#found + 1] = step .. '.' .. u
    end
    u = u + 1
  end
  writes.add('fan_out_sent:' .. step, u)
  if wanted > at_most then
    writes.add('fan_out_due:' .. step, wanted - at_most)
  elseif wanted > 1 then
    redis.call('HDEL', steps, 'fan_out_due:' .. step)
  end
  writes.flush()
  return found
end

-- Dispatches the held-back units whose turn follows the end of a unit. Returns their ids, separated by spaces.
local function next_units(id)
  local step, state, free = whole_of(id), doing(), 1
  if state ~= 'running' and state ~= 'finishing' then
    return ''
  end
  if tonumber(redis.call('HGET', steps, 'canaries:' .. step) or 0) > 0 then
    -- The unit was a canary. The other units wait for all canaries, and then as many begin as may run concurrently.
    if redis.call('HINCRBY', steps, 'canaries:' .. step, -1) > 0 then
      local later = tonumber(redis.call('HGET', steps, 'canaries_held:' .. step))
      -- guard: no more canaries are dispatched than the plan allows; without it: 1
      free = math.min(1, later)
      redis.call('HSET', steps, 'canaries_held:' .. step, later - free)
    else
      free = tonumber(redis.call('HGET', steps, 'at_once:' .. step))
    end
  end
  return table.concat(dispatch_units(step, free), ' ')
end

-- Aborts the run for the failure of a step.
local function stop(id, err)
  redis.call('HSET', run, 'state', 'aborting', 'cause', 'failure', 'err_step', whole_of(id) or id, 'err', err)
  lift()
  emit('run_aborting', 'cause', 'failure', 'step', whole_of(id) or id)
end

-- Whether the time limit of all compensations together has passed. The coordinator gives up those that do not run.
local function compensation_is_late()
  return now >= (tonumber(redis.call('HGET', run, 'undo_deadline') or '') or math.huge)
end

-- Claims a step, unit or compensation for an attempt, as `claim` describes; the state of the run allows it.
-- `opened`: the caller opens the step in the same script; `more`: fields of the run that are written with the claim.
local function claim_step(i, p, owner, task_id, lease_ms, host, stays, version, epoch, opened, more)
  -- One read: the fields that decide, then those of the grant.
  local status, fence, not_before, held, done_at, journalled, other, ids, resent, attempt, rendered, step_rendered,
    before, outcome, started, item, free, service, blocked = unpack(redis.call('HMGET', steps,
    p .. 'status:' .. i, p .. 'fence:' .. i, p .. 'not_before:' .. i, p .. 'owner:' .. i, 'done_at:' .. i,
    'journalled:' .. i, (p == '' and 'u' or '') .. 'fence:' .. i, p .. 'task_ids:' .. i, p .. 'resent:' .. i,
    p .. 'attempts:' .. i, p .. 'rendered:' .. i, 'rendered:' .. i, 'before:' .. i, 'outcome:' .. i,
    p .. 'started:' .. i, 'item:' .. i, p .. 'free_attempts:' .. i, p .. 'service:' .. i, p .. 'blocked:' .. i))
  if opened then
    status = 'ready'
  end
  local busy = p == '' and 'running' or 'undoing'
  local highest = tonumber(fence) or 0
  -- The same delivery claims again where the reply to its first call was lost.
  -- guard: a delivery that repeats its claim gets the same fence; without it: true
  -- guard: no other delivery gets the fence of a running attempt; without it: status ~= busy
  if not (status == busy and held == owner) then
    -- guard: only a dispatched step is claimed
    if status ~= 'ready' and status ~= 'retrying' then
      return {'no', status or 'pending'}
    end
    -- guard: a retry begins no earlier than it is due
    if status == 'retrying' and tonumber(not_before or 0) > now + 50 then
      return {'no', 'early'}
    end
    if p == 'u'
        -- guard: no compensation begins after the time limit of all compensations; without it: false
        and compensation_is_late() then
      return {'no', 'the time limit of the compensations has passed'}
    end
    if stays
        -- guard: a step without a journal may begin on another host
        and (journalled or p == 'u')
        -- guard: a step with a journal is claimed only on its host; without it: false
        and done_at and done_at ~= host then
      return {'no', 'begun on ' .. done_at}
    end
    -- A fence grows with every claim, forward or backward, and does not repeat even if Redis lost its last writes.
    -- guard: a compensation has a higher fence than its step
    highest = math.max(highest, tonumber(other) or 0)
    -- guard: a fence grows even if the clock went back; without it: string.format('%.0f', clock[1] * 1000000 + clock[2])
    -- guard: a fence that redis has lost is not granted again; without it: string.format('%.0f', highest + 1)
    fence = string.format('%.0f', math.max(highest + 1, clock[1] * 1000000 + clock[2]))
    attempt, started = (attempt or 0) + 1, started or now
    local fields = {p .. 'status:' .. i, busy, p .. 'fence:' .. i, fence, p .. 'owner:' .. i, owner,
                    p .. 'attempts:' .. i, attempt, p .. 'started:' .. i, started,
                    p .. 'task_ids:' .. i, (ids and ids .. ' ' or '') .. task_id}
    -- The undo runs on the host whose state was journalled.
    if p == '' and stays then
      fields[#fields + 1], fields[#fields + 2] = 'done_at:' .. i, host
    end
    redis.call('HSET', steps, unpack(fields))
    if resent then
      -- The message has arrived, so the resends of the next attempt are counted from zero; their grace doubles each time.
      -- guard: a claim resets the delay of repeated messages
      redis.call('HDEL', steps, p .. 'resent:' .. i)
    end
    version = (version or 0) + 1
    redis.call('HSET', run, 'claimed', now, 'claimed@' .. host, now, 'version', version, unpack(more))
    emit_as(version, kind(p, i) .. 'started', 'step', i, 'attempt', attempt, 'owner', owner)
  end
  redis.call('ZADD', leases, now + lease_ms, p .. i)
  return {'ok', fence, tostring(attempt), rendered or '', step_rendered or '', before or '', outcome or '',
          tostring(started), item or '', attempt - (free or 0), tostring(version), service or '',
          string.format('%.0f', highest), epoch or 0, blocked or 0}
end
