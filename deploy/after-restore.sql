-- After a backup was restored, before the services start: fences only grow, and those that were issued after the backup
-- may stand in the cluster, where a deployment under a lower one is refused. A million is more than an app will ever need.
-- A lane that somebody holds keeps its fence, which that saga carries; run this again when those sagas have ended.
UPDATE knarr_saga_coordinator.lanes
SET fence = fence + 1000000, body = JSON_SET(body, '$.fence', fence), version = version + 1
WHERE holder IS NULL;
