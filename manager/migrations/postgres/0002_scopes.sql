-- What a token is limited to, as names with a space between them; NULL is not limited.
ALTER TABLE access_tokens ADD COLUMN scopes TEXT;
