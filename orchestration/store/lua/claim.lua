-- Claim a step, or its undo, for one attempt, under a new fence and a lease.
--
-- FROM     ready or retrying, in a run that is running or finishing (forward), or undoing and before the time limit of
--          its compensations (backward); an always step also while that run is suspended
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
-- guard: no step begins in an aborting or undoing or ended run
if p == '' and state ~= 'running' and state ~= 'finishing' then
  return {'no', 'run ' .. (state or 'gone')}
end
-- guard: a compensation begins only in an undoing run
if p == 'u' and state ~= 'undoing' then
  return {'no', 'run ' .. (state or 'gone')}
end
return claim_step(i, p, owner, ARGV[4], tonumber(ARGV[5]), ARGV[8], ARGV[9] == '1', version, epoch, false, {})
