-- Delete the record and the side records of an ended run.
--
-- FROM     a terminal state, or no record
-- ARGV     none; the keys after those of the record are the side records
-- RETURNS  1 deleted, 0 the run is live
-- EVENTS   none, since the stream is deleted
local state = redis.call('HGET', run, 'state')
local rests = state == 'succeeded' or state == 'partial' or state == 'failed' or state == 'undone'
              or state == 'undo_failed' or state == 'cancelled'
-- guard: a live run is not deleted
if state and not rests then
  return 0
end
redis.call('DEL', run, steps, leases, events, waits)
for _, key in ipairs(apart) do
  -- guard: a deleted run leaves no side record
  redis.call('DEL', key)
end
return 1
