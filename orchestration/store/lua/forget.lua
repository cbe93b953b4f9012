-- Delete a run that rests, with everything that was kept apart from its record.
--
-- FROM     a resting state, or no record
-- ARGV     none: the keys after the record's are deleted with it
-- RETURNS  1 it is gone, 0 it is live
-- EVENTS   none: there is nothing left to write them to
local state = redis.call('HGET', run, 'state')
local rests = state == 'succeeded' or state == 'partial' or state == 'failed' or state == 'undone'
              or state == 'undo_failed'
-- guard: a live run is not forgotten
if state and not rests then
  return 0
end
redis.call('DEL', run, steps, leases, events, waits)
for _, key in ipairs(apart) do
  -- guard: a forgotten run leaves no side record
  redis.call('DEL', key)
end
return 1
