-- Events get their numbers after their commit, so that no writer waits for another.
--
-- Readers go by ids that must become visible in ascending order. The trigger of the first migration promised that with
-- a lock from an event's insert to its COMMIT: a client that was frozen in between held up every other writer. Now a
-- writer puts its event into order_outbox, and whichever replica looks next moves what is committed into order_events,
-- numbered, in one statement. The server finishes a statement that it has begun, so a frozen client holds no lock.
--
-- scripts/outbox, which is pgbench with fsync on, on two cores that the clients share; orders/s with 10 and 60 clients,
-- while the outbox is emptied every 20 ms:
--
--                                      two statements    one, as the service does
--     no lock, events out of order      6,340   5,540      3,640   6,920
--     lock from insert to COMMIT        2,610   1,950
--     this outbox                       5,050   3,900      3,830   7,770
--
-- One run of 3 s each: they differ by a fifth from run to run. An outbox costs more work for each event, which shows
-- once the cores are busy; no writer waits.
--
-- The alternative, ids made of transaction ids and readers that stay below pg_snapshot_xmin(), writes a little less.
-- But every long transaction anywhere in the cluster would hold up all events, and transaction ids begin anew in a
-- cluster that a dump is restored into. Numbers from a sequence survive that, and a failover.
--
-- Older builds go on during a rollout and after a rollback: they read order_events as before, and what they insert
-- there is numbered by the trigger, under the lock as before, after what waits in the outbox.

CREATE TABLE order_outbox (
    seq      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id uuid NOT NULL,
    status   text NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

-- For retention.
ALTER TABLE order_events ADD COLUMN at timestamptz NOT NULL DEFAULT now();

-- Numbers what is committed, at most 1,000 events, unless another session is at it. Returns the newest number.
--
-- Rows that are gone are walked over until they can be vacuumed, which a long transaction anywhere prevents, such as a
-- backup. So a caller that has looked at all rows before says after which `seq` to look, and looks at all now and then.
CREATE FUNCTION order_events_number(after bigint) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    IF pg_try_advisory_xact_lock('order_events'::regclass::bigint)
        AND EXISTS (SELECT FROM order_outbox WHERE seq > after)
    THEN
        WITH taken AS (
            DELETE FROM order_outbox WHERE seq = ANY (ARRAY(
                SELECT seq FROM order_outbox WHERE seq > after ORDER BY seq LIMIT 1000
            )) RETURNING *
        )
        INSERT INTO order_events (id, order_id, status)
        SELECT nextval('order_events_id'), order_id, status FROM (SELECT * FROM taken ORDER BY seq) AS ordered
        -- an order that somebody has deleted has no events, and must not keep those of others back
        WHERE (SELECT true FROM orders WHERE orders.id = ordered.order_id)
        ON CONFLICT (order_id, status) DO NOTHING;
    END IF;
    RETURN coalesce((SELECT max(id) FROM order_events), 0);
END
$$;

CREATE OR REPLACE FUNCTION order_events_in_commit_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('order_events'::regclass::bigint);
    PERFORM order_events_number(0);
    NEW.id := nextval('order_events_id');
    RETURN NEW;
END
$$;

DROP TRIGGER order_events_in_commit_order ON order_events;
CREATE TRIGGER order_events_in_commit_order BEFORE INSERT ON order_events
    FOR EACH ROW WHEN (NEW.id IS NULL) EXECUTE FUNCTION order_events_in_commit_order();
