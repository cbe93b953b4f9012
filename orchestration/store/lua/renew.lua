-- Renew the leases of attempts that a worker still runs.
--
-- FROM     an attempt whose owner begins with the name given
-- ARGV[1]  lease ms, then <id> or u<id>, prefix of its owner, for each
-- RETURNS  number of renewed leases
-- EVENTS   none
local renewed = 0
for n = 2, #ARGV, 2 do
  local member, who = ARGV[n], ARGV[n + 1]
  local p, i = string.match(member, '^(u?)([%d.]+)$')
  local owner = redis.call('HGET', steps, p .. 'owner:' .. i)
  if owner
      -- guard: a lease is renewed only by the worker of its attempt
      and string.sub(owner, 1, #who) == who
      -- guard: an expired lease is not renewed
      and redis.call('ZSCORE', leases, member) then
    redis.call('ZADD', leases, 'XX', 'GT', now + tonumber(ARGV[1]), member)
    renewed = renewed + 1
  end
end
return renewed
