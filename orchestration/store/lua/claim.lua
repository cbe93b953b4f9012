-- Claim a step, or its undo, for one attempt, under a new fence and a lease.
--
-- FROM     ready or retrying, in a run that is running or finishing (forward) or undoing (backward); an always
--          step also while that run is suspended
-- ARGV[1]  id       ARGV[2]  '' forward, 'u' backward    ARGV[3]  owner, unique to this delivery
-- ARGV[4]  task id  ARGV[5]  lease ms  ARGV[6]  '1' for an always step  ARGV[7]  instance id of the run
-- ARGV[8]  host of the worker  ARGV[9]  '1' if the step may run only on the host of its first claim
-- RETURNS  {'ok', fence, attempt, rendered, the step's rendered, before, outcome, first started ms,
--           item, attempts since the last resume, version of the run, service found down,
--           highest former fence, epoch, attempts blocked by a service}
--          or {'no', reason}
-- EVENTS   step_started | item_started | undo_started
local i, p, owner = ARGV[1], ARGV[2], ARGV[3]
local instance_id = redis.call('HGET', run, 'instance_id')
-- guard: a message of an earlier run with the same id claims nothing
if instance_id and ARGV[7] ~= '' and instance_id ~= ARGV[7] then
  return {'no', 'another run'}
end
-- guard: an always step begins in a suspended run; without it: redis.call('HGET', run, 'state')
-- guard: no other step begins in a suspended run; without it: doing()
local state = ARGV[6] == '1' and doing() or redis.call('HGET', run, 'state')
-- guard: a step begins only in a running or finishing run
if p == '' and state ~= 'running' and state ~= 'finishing' then
  return {'no', 'run ' .. (state or 'gone')}
end
-- guard: a compensation begins only in an undoing run
if p == 'u' and state ~= 'undoing' then
  return {'no', 'run ' .. (state or 'gone')}
end
local status, fence, not_before, held = unpack(redis.call('HMGET', steps,
  p .. 'status:' .. i, p .. 'fence:' .. i, p .. 'not_before:' .. i, p .. 'owner:' .. i))
local busy = p == '' and 'running' or 'undoing'
local highest = tonumber(fence) or 0
-- The same delivery claims again where the reply to its first call was lost.
-- guard: a repeated delivery gets its claim again; without it: true
-- guard: only the same delivery gets its claim again; without it: status ~= busy
if not (status == busy and held == owner) then
  -- guard: only a dispatched step is claimed
  if status ~= 'ready' and status ~= 'retrying' then
    return {'no', status or 'pending'}
  end
  -- guard: a retry begins no earlier than it is due
  if status == 'retrying' and tonumber(not_before or 0) > now + 50 then
    return {'no', 'early'}
  end
  local begun_on, journalled
  if ARGV[9] == '1' then
    begun_on, journalled = unpack(redis.call('HMGET', steps, 'done_at:' .. i, 'journalled:' .. i))
    -- guard: a step without a journal may begin on another host
    if (journalled or p == 'u')
        -- guard: a journalled step is claimed only on its host; without it: false
        and begun_on and begun_on ~= ARGV[8] then
      return {'no', 'begun on ' .. begun_on}
    end
  end
  -- A fence grows with every claim, forward or backward, and does not repeat even if Redis lost its last writes.
  local other = redis.call('HGET', steps, (p == '' and 'u' or '') .. 'fence:' .. i)
  -- guard: a compensation has a higher fence than its step
  highest = math.max(highest, tonumber(other) or 0)
  -- guard: a fence grows although the clock went back; without it: string.format('%.0f', clock[1] * 1000000 + clock[2])
  -- guard: a fence is not granted again after redis lost it; without it: string.format('%.0f', highest + 1)
  fence = string.format('%.0f', math.max(highest + 1, clock[1] * 1000000 + clock[2]))
  local attempt = redis.call('HINCRBY', steps, p .. 'attempts:' .. i, 1)
  redis.call('HSETNX', steps, p .. 'started:' .. i, now)
  -- The message has arrived, so the resends of the next attempt are counted from zero; their grace doubles each time.
  -- guard: the messages of each attempt are counted anew
  redis.call('HDEL', steps, p .. 'resent:' .. i)
  local ids = redis.call('HGET', steps, p .. 'task_ids:' .. i)
  redis.call('HSET', steps, p .. 'status:' .. i, busy, p .. 'fence:' .. i, fence, p .. 'owner:' .. i, owner,
             p .. 'task_ids:' .. i, (ids and ids .. ' ' or '') .. ARGV[4])
  redis.call('HSET', run, 'claimed', now, 'claimed@' .. ARGV[8], now)
  -- The undo runs on the host whose state was journalled.
  if p == '' and ARGV[9] == '1' then
    redis.call('HSET', steps, 'done_at:' .. i, ARGV[8])
  end
  emit(kind(p, i) .. 'started', 'step', i, 'attempt', attempt, 'owner', owner)
end
redis.call('ZADD', leases, now + tonumber(ARGV[5]), p .. i)
local r = redis.call('HMGET', steps, p .. 'attempts:' .. i, p .. 'rendered:' .. i, 'rendered:' .. i, 'before:' .. i,
                     'outcome:' .. i, p .. 'started:' .. i,
                     'item:' .. i, p .. 'free_attempts:' .. i, p .. 'service:' .. i, p .. 'blocked:' .. i)
return {'ok', fence, r[1], r[2] or '', r[3] or '', r[4] or '', r[5] or '', r[6], r[7] or '', r[1] - (r[8] or 0),
        redis.call('HGET', run, 'version'), r[9] or '', string.format('%.0f', highest),
        redis.call('HGET', run, 'epoch') or 0, r[10] or 0}
