-- Before every script: its keys, Redis's clock, and the one way to write an event.
--
-- A step is named by its index, a unit of a step that was fanned out by `<index>.<unit>`.
--
-- KEYS[1] run     hash    state, level, left, …
-- KEYS[2] steps   hash    <field>:<id>; an undo's fields have a u before them
-- KEYS[3] leases  zset    <id> or u<id> → when the lease ends, ms
-- KEYS[4] events  stream  everything that happened
-- KEYS[5] waits   zset    <id> or u<id> of what is parked → until when at most, ms
-- KEYS[6] and on, of `forget`: what is kept apart from the record
local run, steps, leases, events, waits = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local apart = {unpack(KEYS, 6)}
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Every transition is one version and one event.
local function emit(name, ...)
  local ver = redis.call('HINCRBY', run, 'version', 1)
  redis.call('XADD', events, '*', 'event', name, 'version', ver, 'at', now, ...)
end

-- A step that was just dispatched: its message counts as under way for `grace` ms.
local function dispatched(prefix, id, grace)
  redis.call('HSET', steps, prefix .. 'status:' .. id, 'ready', prefix .. 'sent:' .. id, now,
             prefix .. 'sent_until:' .. id, now + grace)
end

-- What the run is doing, also while it is suspended.
local function doing()
  local state, was = unpack(redis.call('HMGET', run, 'state', 'suspended_state'))
  if state == 'suspended' then
    return was
  end
  return state
end

-- A command is carried out once: those up to `cmd` have been.
local function handled(id)
  local last = redis.call('HGET', run, 'last_command')
  if not last then
    return false
  end
  local a, b = string.match(last, '(%d+)-(%d+)')
  local c, d = string.match(id, '(%d+)-(%d+)')
  a, b, c, d = tonumber(a), tonumber(b), tonumber(c), tonumber(d)
  -- guard: commands of one millisecond have an order; without it: c < a or (c == a and d == b)
  return c < a or (c == a and d <= b)
end

-- Note that a command was handled, and what became of it.
local function answer(id, text)
  redis.call('HSET', run, 'last_command', id, 'answer', text)
  return text
end

-- The run goes on where it was suspended, or is ended.
local function lift()
  redis.call('HDEL', run, 'suspended_state', 'hold_reason', 'hold', 'service')
end

-- Hold the run where it is: nothing new is claimed until somebody, or the end of `what`, lets it go on.
local function suspend(what, why, service)
  local state = redis.call('HGET', run, 'state')
  if state ~= 'suspended' then
    redis.call('HSET', run, 'state', 'suspended', 'suspended_state', state)
  end
  redis.call('HSET', run, 'hold', what, 'hold_reason', why, 'service', service)
  emit('run_suspended', 'for', what, 'error', why)
end

-- Whether the run can go on now: nothing of the batch is left, or, while it is ending, nothing runs.
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

-- For an event: the host that a unit was sent to.
local function at(id)
  return whole_of(id) and redis.call('HGET', steps, 'host:' .. id) or ''
end

-- What an event about a step, a unit or an undo is called.
local function kind(prefix, id)
  return prefix == 'u' and 'undo_' or whole_of(id) and 'item_' or 'step_'
end

-- All units of a step have ended, and with them the step. Returns its status and error.
local function whole_ended(step)
  local all, failed, changed, cancelled, tolerated, first, skipped, canary = unpack(redis.call('HMGET', steps,
    'fan_out:' .. step, 'fan_out_failed:' .. step, 'fan_out_changed:' .. step, 'fan_out_cancelled:' .. step,
      'tolerated:' .. step, 'error:' .. step, 'fan_out_skipped:' .. step,
    'canary_failed:' .. step))
  failed = tonumber(failed or 0)
  -- guard: a step is skipped if all of its units are skipped
  if skipped == all then
    local why = 'all of its parts were skipped; the first: ' .. redis.call('HGET', steps, 'reason:' .. step .. '.0')
    redis.call('HSET', steps, 'status:' .. step, 'skipped', 'reason:' .. step, why, 'ended:' .. step, now)
    emit('step_skipped', 'step', step, 'reason', why)
    return 'skipped', ''
  end
  local total, text = 'unchanged', ''
  if failed > 0 then
    text = failed .. ' of ' .. all .. ' failed; the first: ' .. first
    if canary then
      text = 'its canary failed, and the rest was left alone: ' .. first
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

-- The canary of a step has failed: what was held back behind it is left alone.
local function leave_the_rest(step)
  redis.call('HSET', steps, 'canary_failed:' .. step, 1)
  for u = 0, tonumber(redis.call('HGET', steps, 'fan_out:' .. step)) - 1 do
    local id = step .. '.' .. u
    if redis.call('HEXISTS', steps, 'status:' .. id) == 0 then
      redis.call('HSET', steps, 'status:' .. id, 'not_run', 'reason:' .. id, 'the canary failed', 'ended:' .. id, now)
      redis.call('HINCRBY', steps, 'fan_out_left:' .. step, -1)
      emit('item_ended', 'step', id, 'status', 'not_run', 'error', '')
    end
  end
end

-- Count a final step, unit or undo, and write its event. Returns the status and the error of the whole step;
-- nil while other units of it go on.
local function ended(prefix, id, status, err)
  if status == 'skipped' then
    redis.call('HSET', steps, 'reason:' .. id, err)
    emit(kind(prefix, id) .. 'skipped', 'step', id, 'host', at(id), 'reason', err)
    err = ''
  else
    emit(kind(prefix, id) .. 'ended', 'step', id, 'host', at(id), 'status', status, 'error', err)
  end
  local step = prefix == '' and whole_of(id)
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
      -- guard: a failed canary leaves the held back units alone
      leave_the_rest(step)
    end
  end
  if redis.call('HINCRBY', steps, 'fan_out_left:' .. step, -1) > 0 then
    return nil
  end
  redis.call('HINCRBY', run, 'left', -1)
  return whole_ended(step)
end

-- Dispatch up to so many of the units of a step that were held back. Returns their ids.
local function dispatch_units(step, at_most, grace)
  local all, sent = unpack(redis.call('HMGET', steps, 'fan_out:' .. step, 'fan_out_sent:' .. step))
  local found, u = {}, tonumber(sent)
  -- Some have ended already: of a step that goes on after an interruption, or on hosts that do not do it.
  while u < tonumber(all) and #found < at_most do
    local id = step .. '.' .. u
    local begun = redis.call('HEXISTS', steps, 'status:' .. id) == 1
    -- guard: a unit that has ended is not dispatched again; without it: true
    if not begun then
      dispatched('', id, grace)
      found[#found + 1] = id
    end
    u = u + 1
  end
  redis.call('HSET', steps, 'fan_out_sent:' .. step, u)
  return found
end

-- After a unit has ended: those that were held back and have their turn are dispatched. Returns their ids, spaced.
local function next_units(id, grace)
  local step, state, free = whole_of(id), doing(), 1
  if state ~= 'running' and state ~= 'finishing' then
    return ''
  end
  if tonumber(redis.call('HGET', steps, 'canaries:' .. step) or 0) > 0 then
    -- It was a canary. The rest waits for all of them, and then begins as many as may be at once.
    if redis.call('HINCRBY', steps, 'canaries:' .. step, -1) > 0 then
      local later = tonumber(redis.call('HGET', steps, 'canaries_held:' .. step))
      -- guard: no more canaries are dispatched than were chosen; without it: 1
      free = math.min(1, later)
      redis.call('HSET', steps, 'canaries_held:' .. step, later - free)
    else
      free = tonumber(redis.call('HGET', steps, 'at_once:' .. step))
    end
  end
  return table.concat(dispatch_units(step, free, grace), ' ')
end

-- A failure that ends the run.
local function stop(id, err)
  redis.call('HSET', run, 'state', 'aborting', 'cause', 'failure', 'err_step', whole_of(id) or id, 'err', err)
  lift()
  emit('run_aborting', 'cause', 'failure', 'step', whole_of(id) or id)
end
