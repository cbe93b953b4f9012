-- Record the answer of a host about its receipts, with the attempts that ran there and that the record does not know.
-- Each such step becomes changed or unknown, so that a compensation undoes it or the report names it.
--
-- FROM     a run that waits for answers to this question
-- ARGV[1]  name of the question  ARGV[2]  host  ARGV[3]  highest version of the run seen there
-- ARGV[4]  attempts that cannot be fenced there, a line each, or ''
--          then id, fence, status, outcome JSON, rendered parameters, state for the undo, for each such attempt
-- RETURNS  1 recorded, 0 the run does not wait for this question
-- EVENTS   hosts_answered, step_found | item_found for each
local asking, answered, doubts = unpack(redis.call('HMGET', run, 'asking', 'answered', 'doubts'))
-- guard: an answer to an earlier question does not count
if asking ~= ARGV[1] then
  return 0
end
for n = 5, #ARGV, 6 do
  local i, fence, status = ARGV[n], ARGV[n + 1], ARGV[n + 2]
  local forward, backward, before = unpack(redis.call('HMGET', steps, 'fence:' .. i, 'ufence:' .. i, 'status:' .. i))
  -- guard: the receipt of a recorded attempt changes no step; without it: true
  if tonumber(fence) > math.max(tonumber(forward) or 0, tonumber(backward) or 0) then
    -- A recorded outcome of an earlier attempt stands, unless the outcome proves that there was no effect.
    -- guard: an unrecorded attempt replaces no changed or failed or unknown outcome; without it: true
    if before ~= 'changed' and before ~= 'failed' and before ~= 'unknown' then
      redis.call('HSET', steps, 'status:' .. i, status, 'outcome:' .. i, ARGV[n + 3], 'ended:' .. i, now)
    end
    redis.call('HSET', steps, 'fence:' .. i, fence, 'done_at:' .. i, ARGV[2], 'journalled:' .. i, 1)
    redis.call('HSETNX', steps, 'attempts:' .. i, 1)
    -- guard: an unrecorded attempt removes the note that its step had no effect
    redis.call('HDEL', steps, 'no_effect:' .. i, 'reason:' .. i)
    if ARGV[n + 4] ~= '' then
      redis.call('HSETNX', steps, 'rendered:' .. i, ARGV[n + 4])
    end
    if ARGV[n + 5] ~= '' then
      redis.call('HSETNX', steps, 'before:' .. i, ARGV[n + 5])
    end
    emit(whole_of(i) and 'item_found' or 'step_found', 'step', i, 'host', ARGV[2], 'status', status)
  end
end
if ARGV[4] ~= '' then
  redis.call('HSET', run, 'doubts', (doubts and doubts .. '\n' or '') .. ARGV[4])
end
-- guard: the version of the record rises to the highest one that a host has seen
if (tonumber(redis.call('HGET', run, 'version')) or 0) < tonumber(ARGV[3]) then
  redis.call('HSET', run, 'version', ARGV[3])
end
redis.call('HSET', run, 'answered', answered .. ' ' .. ARGV[2])
emit('hosts_answered', 'host', ARGV[2])
return 1
