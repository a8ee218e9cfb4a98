-- The example: orders and what happened to them. Goes with src/orders/.

CREATE TABLE orders (
    id              uuid PRIMARY KEY,
    sku             text NOT NULL,
    quantity        integer NOT NULL CHECK (quantity > 0),
    total_cents     bigint NOT NULL CHECK (total_cents >= 0),
    status          text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'confirmed', 'rejected')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    -- A retried request finds its order by this.
    idempotency_key text CONSTRAINT orders_idempotency_key UNIQUE,
    -- The worker's: how often it has tried, how often the catalogue refused, and when it may try again.
    attempts        integer NOT NULL DEFAULT 0,
    refusals        integer NOT NULL DEFAULT 0,
    next_attempt_at timestamptz NOT NULL DEFAULT now(),
    -- Why it was rejected.
    reason          text
);

CREATE INDEX orders_pending ON orders (next_attempt_at) WHERE status = 'pending';

-- What the streams show: one row for each status an order takes.
CREATE TABLE order_events (
    id       bigint PRIMARY KEY,
    order_id uuid NOT NULL REFERENCES orders,
    status   text NOT NULL,
    UNIQUE (order_id, status)
);

CREATE SEQUENCE order_events_id OWNED BY order_events.id;

-- Ids must become visible in their own order, or a reader that has seen 7 misses the 6 that is committed after it. A
-- sequence alone does not promise that; one writer at a time, from taking its id to its commit, does.
CREATE FUNCTION order_events_in_commit_order() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock('order_events'::regclass::bigint);
    NEW.id := nextval('order_events_id');
    RETURN NEW;
END
$$;

CREATE TRIGGER order_events_in_commit_order BEFORE INSERT ON order_events
    FOR EACH ROW EXECUTE FUNCTION order_events_in_commit_order();
