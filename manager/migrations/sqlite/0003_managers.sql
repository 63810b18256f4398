-- Where hosts join by way of each manager that uses this database.
CREATE TABLE managers (
    peer_id TEXT PRIMARY KEY NOT NULL,
    addresses TEXT NOT NULL,
    seen BIGINT NOT NULL
);
