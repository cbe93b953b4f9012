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
local instance_id, state, was, version, epoch = unpack(redis.call('HMGET', run, 'instance_id', 'state',
  'suspended_state', 'version', 'epoch'))
-- guard: a message of an earlier run with the same id claims nothing
if instance_id and ARGV[7] ~= '' and instance_id ~= ARGV[7] then
  return {'no', 'another run'}
end
-- guard: an always step begins in a suspended run; without it: false
if state == 'suspended'
    -- guard: no other step begins in a suspended run
    and ARGV[6] == '1' then
  state = was
end
-- guard: a step begins only in a running or finishing run
if p == '' and state ~= 'running' and state ~= 'finishing' then
  return {'no', 'run ' .. (state or 'gone')}
end
-- guard: a compensation begins only in an undoing run
if p == 'u' and state ~= 'undoing' then
  return {'no', 'run ' .. (state or 'gone')}
end
-- One read: the fields that decide, then those of the grant.
local status, fence, not_before, held, done_at, journalled, other, ids, resent, attempt, rendered, step_rendered,
  before, outcome, started, item, free, service, blocked = unpack(redis.call('HMGET', steps,
  p .. 'status:' .. i, p .. 'fence:' .. i, p .. 'not_before:' .. i, p .. 'owner:' .. i, 'done_at:' .. i,
  'journalled:' .. i, (p == '' and 'u' or '') .. 'fence:' .. i, p .. 'task_ids:' .. i, p .. 'resent:' .. i,
  p .. 'attempts:' .. i, p .. 'rendered:' .. i, 'rendered:' .. i, 'before:' .. i, 'outcome:' .. i,
  p .. 'started:' .. i, 'item:' .. i, p .. 'free_attempts:' .. i, p .. 'service:' .. i, p .. 'blocked:' .. i))
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
  if ARGV[9] == '1'
      -- guard: a step without a journal may begin on another host
      and (journalled or p == 'u')
      -- guard: a journalled step is claimed only on its host; without it: false
      and done_at and done_at ~= ARGV[8] then
    return {'no', 'begun on ' .. done_at}
  end
  -- A fence grows with every claim, forward or backward, and does not repeat even if Redis lost its last writes.
  -- guard: a compensation has a higher fence than its step
  highest = math.max(highest, tonumber(other) or 0)
  -- guard: a fence grows although the clock went back; without it: string.format('%.0f', clock[1] * 1000000 + clock[2])
  -- guard: a fence is not granted again after redis lost it; without it: string.format('%.0f', highest + 1)
  fence = string.format('%.0f', math.max(highest + 1, clock[1] * 1000000 + clock[2]))
  attempt, started = (attempt or 0) + 1, started or now
  local fields = {p .. 'status:' .. i, busy, p .. 'fence:' .. i, fence, p .. 'owner:' .. i, owner,
                  p .. 'attempts:' .. i, attempt, p .. 'started:' .. i, started,
                  p .. 'task_ids:' .. i, (ids and ids .. ' ' or '') .. ARGV[4]}
  -- The undo runs on the host whose state was journalled.
  if p == '' and ARGV[9] == '1' then
    fields[#fields + 1], fields[#fields + 2] = 'done_at:' .. i, ARGV[8]
  end
  redis.call('HSET', steps, unpack(fields))
  if resent then
    -- The message has arrived, so the resends of the next attempt are counted from zero; their grace doubles each time.
    -- guard: the messages of each attempt are counted anew
    redis.call('HDEL', steps, p .. 'resent:' .. i)
  end
  version = (version or 0) + 1
  redis.call('HSET', run, 'claimed', now, 'claimed@' .. ARGV[8], now, 'version', version)
  emit_as(version, kind(p, i) .. 'started', 'step', i, 'attempt', attempt, 'owner', owner)
end
redis.call('ZADD', leases, now + tonumber(ARGV[5]), p .. i)
return {'ok', fence, tostring(attempt), rendered or '', step_rendered or '', before or '', outcome or '',
        tostring(started), item or '', attempt - (free or 0), tostring(version), service or '',
        string.format('%.0f', highest), epoch or 0, blocked or 0}
