-- Delete a run that rests, with everything that was kept apart from its record.
--
-- FROM     a resting state, or no record
-- ARGV     none: the keys after the record's are deleted with it
-- RETURNS  1 it is gone, 0 it is live
-- EVENTS   none: there is nothing left to write them to
local state = redis.call('HGET', run, 'state')
if state and state ~= 'succeeded' and state ~= 'partial' and state ~= 'failed' and state ~= 'undone'
    and state ~= 'undo_failed' then
  return 0
end
redis.call('DEL', run, steps, leases, events, waits)
for _, key in ipairs(apart) do
  redis.call('DEL', key)
end
return 1
