-- Before every script: its keys, Redis's clock, and the one way to write an event.
--
-- KEYS[1] run     hash    state, level, left, …
-- KEYS[2] steps   hash    <field>:<index>; an undo's fields have a u before them
-- KEYS[3] leases  zset    <index> or u<index> → when the lease ends, ms
-- KEYS[4] events  stream  everything that happened
local run, steps, leases, events = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Every transition is one version and one event.
local function emit(name, ...)
  local ver = redis.call('HINCRBY', run, 'ver', 1)
  redis.call('XADD', events, '*', 'event', name, 'ver', ver, 'at', now, ...)
end

-- A step that was just dispatched: its message counts as under way for `grace` ms.
local function dispatched(prefix, index, grace)
  redis.call('HSET', steps, prefix .. 's:' .. index, 'ready', prefix .. 'q:' .. index, now,
             prefix .. 'd:' .. index, now + grace)
end

-- Whether the run can go on now: nothing of the batch is left, or, while it is ending, nothing runs.
local function can_advance(state)
  if state == 'aborting' then
    return redis.call('ZCARD', leases) == 0 and 1 or 0
  end
  return tonumber(redis.call('HGET', run, 'left') or 0) <= 0 and 1 or 0
end
