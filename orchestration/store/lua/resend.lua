-- Find the steps that need another message: dispatched, not claimed, and the last message overdue.
--
-- FROM     ready or retrying, with no message under way
-- ARGV[1]  '' or 'u'  ARGV[2]  grace ms, doubled each time up to ten minutes  ARGV[3]  ms from first
--          dispatch, or the last claim in the run, until a step counts as refused, then id, host or '',
--          '1' if the message still waits in its queue, for each
-- RETURNS  {id or '!' .. id, …}: a message to send, or a step that counts as refused
-- EVENTS   message_resent for each
local p, found = ARGV[1], {}
local opened = redis.call('HGET', run, 'opened')
local claims = {}
for n = 4, #ARGV, 3 do
  local i, host, queued = ARGV[n], ARGV[n + 1], ARGV[n + 2]
  -- A step is not refused while the same workers claim other steps of the run.
  -- guard: the claim timeout of a step bound to a host ignores claims on other hosts; without it: 'claimed'
  local last = host == '' and 'claimed' or 'claimed@' .. host
  claims[last] = claims[last] or tonumber(redis.call('HGET', run, last) or 0)
  local claimed = claims[last]
  local status, sent, due, not_before, times = unpack(redis.call('HMGET', steps,
    p .. 'status:' .. i, p .. 'sent:' .. i, p .. 'sent_until:' .. i, p .. 'not_before:' .. i, p .. 'resent:' .. i))
  sent = sent or opened or 0
  -- guard: no message is sent for a claimed step; without it: true
  if status == 'ready' or status == 'retrying' then
    if now - math.max(tonumber(sent), claimed) >= tonumber(ARGV[3]) then
      found[#found + 1] = '!' .. i
    -- guard: a message that may still arrive is not sent again
    elseif (tonumber(due) or sent + ARGV[2]) <= now
        -- guard: a message that waits in its queue is not sent again
        and queued == ''
        -- guard: a retry is not sent before it is due
        and tonumber(not_before or 0) <= now then
      local again = redis.call('HINCRBY', steps, p .. 'resent:' .. i, 1)
      redis.call('HSET', steps, p .. 'sent_until:' .. i, now + math.min(600000,
                 tonumber(ARGV[2]) * 2 ^ math.min(again, 20)))
      emit('message_resent', 'step', i, 'undo', p, 'times', again)
      found[#found + 1] = i
    end
  end
end
return found
