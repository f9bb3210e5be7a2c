-- The history of a gateway's members is asked for by gateway.
CREATE INDEX transitions_gateway ON transitions (gateway_uid, of, uid, id);
