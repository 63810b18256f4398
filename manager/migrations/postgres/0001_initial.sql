-- Times are milliseconds since 1970; lists and maps are JSON; numbers that order rows are given out by the writer.
-- The folders sqlite and postgres differ in the type of bytes, and in nothing else.

CREATE TABLE meta (
    key TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
);

CREATE TABLE counters (
    name TEXT PRIMARY KEY NOT NULL,
    value BIGINT NOT NULL
);

INSERT INTO counters (name, value) VALUES ('serial', 0);

CREATE TABLE configurations (
    epoch BIGINT PRIMARY KEY NOT NULL,
    issued BIGINT NOT NULL,
    signed BYTEA NOT NULL,
    actor TEXT NOT NULL,
    reason TEXT
);

CREATE TABLE join_tokens (
    id BYTEA PRIMARY KEY NOT NULL,
    number BIGINT NOT NULL UNIQUE,
    verifier BYTEA NOT NULL,
    roles TEXT NOT NULL,
    tags TEXT NOT NULL,
    uses BIGINT NOT NULL,
    uses_left BIGINT NOT NULL CHECK (uses_left >= 0),
    expires BIGINT NOT NULL,
    created BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    revoked BIGINT
);

CREATE TABLE members (
    peer_id TEXT PRIMARY KEY NOT NULL,
    roles TEXT NOT NULL,
    tags TEXT NOT NULL,
    serial BIGINT NOT NULL,
    joined BIGINT NOT NULL,
    renewed BIGINT NOT NULL,
    not_after BIGINT NOT NULL,
    addresses TEXT NOT NULL,
    version TEXT NOT NULL,
    token_id BYTEA NOT NULL,
    revoked BIGINT,
    revoked_reason TEXT,
    revoked_by TEXT
);

CREATE INDEX members_revoked ON members (revoked);

CREATE TABLE audit (
    id BIGINT PRIMARY KEY NOT NULL,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    from_address TEXT,
    before_json TEXT,
    after_json TEXT
);

CREATE INDEX audit_actor ON audit (actor, id);
CREATE INDEX audit_action ON audit (action, id);

CREATE TABLE users (
    name TEXT PRIMARY KEY NOT NULL,
    role TEXT NOT NULL,
    password TEXT NOT NULL,
    disabled BIGINT NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE sessions (
    hash BYTEA PRIMARY KEY NOT NULL,
    user_name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    created BIGINT NOT NULL,
    used BIGINT NOT NULL
);

CREATE INDEX sessions_user ON sessions (user_name, used);

CREATE TABLE access_tokens (
    number BIGINT PRIMARY KEY NOT NULL,
    hash BYTEA NOT NULL UNIQUE,
    user_name TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    label TEXT NOT NULL,
    role TEXT NOT NULL,
    created BIGINT NOT NULL,
    expires BIGINT NOT NULL
);

CREATE INDEX access_tokens_user ON access_tokens (user_name, number);
