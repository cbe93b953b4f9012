-- Remove a run from the inbox, unless a command has renewed its entry.
--
-- KEYS[1] inbox
-- ARGV[1] run  ARGV[2] score at which the entry was found
-- RETURNS 1 removed, 0 the entry has another score, or is gone
-- guard: a run with a new command stays in the inbox
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or -1) ~= tonumber(ARGV[2]) then
  return 0
end
return redis.call('ZREM', KEYS[1], ARGV[1])
