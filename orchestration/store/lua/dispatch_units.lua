-- Dispatch further units of a step with many units, which one script would not have dispatched in a short time.
--
-- FROM     running or finishing
-- ARGV[1]  index of the step
-- RETURNS  ids of the units, separated by spaces; the caller sends their messages
-- EVENTS   none
local state = doing()
-- guard: an aborting run dispatches no unit
if state ~= 'running' and state ~= 'finishing' then
  return ''
end
local due = redis.call('HGET', steps, 'fan_out_due:' .. ARGV[1])
if not due then
  return ''
end
return table.concat(dispatch_units(ARGV[1], tonumber(due)), ' ')
