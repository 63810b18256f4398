-- The deletes of hosts that are in the audit: each owner of a task tells of the same one, and tells again after a start.
CREATE TABLE deletions (
    task TEXT NOT NULL,
    generation BIGINT NOT NULL,
    noted BIGINT NOT NULL,
    PRIMARY KEY (task, generation)
);
