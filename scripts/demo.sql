-- About a million plausible orders, made by the server itself.
create table customers (
  id integer primary key,
  name text not null,
  region text not null
);
insert into customers
select i,
       'Customer ' || lpad(i::text, 5, '0'),
       (array['North', 'South', 'East', 'West', 'Overseas'])[1 + (hashint4(i) & 2147483647) % 5]
from generate_series(1, 20000) as i;

create table orders (
  id bigint primary key,
  customer_id integer not null references customers (id),
  region text not null,
  placed_at timestamptz not null,
  amount numeric(12, 2) not null,
  items smallint not null,
  note text
);
insert into orders
select i, c.id, c.region,
       timestamptz '2024-01-01 00:00+00' + (i * interval '63 seconds') + ((hashint8(i) & 65535) || ' milliseconds')::interval,
       round((5 + 995 * power(((hashint8(i * 7) & 1048575) / 1048576.0), 3))::numeric, 2),
       1 + (hashint8(i * 13) & 2147483647) % 9,
       case when (hashint8(i * 17) & 15) = 0 then 'gift' end
from generate_series(1, :rows) as i
join customers c on c.id = 1 + (hashint8(i * 3) & 2147483647) % 20000;

grant select on all tables in schema public to report;
analyze;
