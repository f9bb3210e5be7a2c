-- A table of the shape of TPC-H's lineitem, of the server's own making: the same rows
-- every time, about 180 bytes each. $1 is the number of rows.
insert into lineitem
select
  1 + i / 4,
  1 + a % 200000,
  1 + b % 10000,
  1 + i % 4,
  1 + a % 50,
  (90000 + a % 100000) * (1 + a % 50) / 100.0,
  (b % 11) / 100.0,
  (b / 16 % 9) / 100.0,
  substr('ANR', 1 + a / 64 % 3, 1),
  substr('FO', 1 + b / 64 % 2, 1),
  date '1992-01-02' + a / 256 % 2500,
  date '1992-02-01' + b / 256 % 2500,
  date '1992-01-20' + a / 256 % 2500,
  (array['COLLECT COD', 'DELIVER IN PERSON', 'NONE', 'TAKE BACK RETURN'])[1 + b / 1024 % 4],
  (array['AIR', 'FOB', 'MAIL', 'RAIL', 'REG AIR', 'SHIP', 'TRUCK'])[1 + a / 1024 % 7],
  substr('the regular packages wait for nobody while final deposits sleep beside the quiet ironic accounts; '
      || 'even requests haggle slowly above express theodolites, and bold pinto beans cajole across the furious tide',
    1 + a / 32 % 150, 10 + b / 32 % 34)
from (
  select i, hashint4(i) & 2147483647 as a, hashint4(i # 1515870810) & 2147483647 as b
  from generate_series(0, $1::int - 1) as i
  offset 0 -- the hashes are worked out once per row
) as n
