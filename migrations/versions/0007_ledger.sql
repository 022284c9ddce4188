-- Periods with their trial balances, sealed postings, shares of the revenue, own costs, and credit that rolls over.

alter table credit_grant
  add rollover_max numeric(38, 0) not null default 0,
  add rolled_from uuid,
  add constraint credit_grant_rollover_max_check
    check (rollover_max >= 0 and (rollover_max = 0 or expires_at is not null)),
  add constraint credit_grant_rolled_from_key unique (rolled_from),
  add constraint credit_grant_rolled_from_fk foreign key (rolled_from) references credit_grant (id);

-- Tables --------------------------------------------------------------------------------------------------------------

CREATE TABLE accounting_period (
  id TEXT NOT NULL,
  starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
  ends_at TIMESTAMP WITH TIME ZONE NOT NULL,
  closed_at TIMESTAMP WITH TIME ZONE NOT NULL,
  closed_by TEXT NOT NULL,
  trial_balance JSONB NOT NULL,
  digest BYTEA NOT NULL,
  last_posting BIGINT NOT NULL,
  CONSTRAINT accounting_period_pk PRIMARY KEY (id),
  CONSTRAINT accounting_period_bounds_check CHECK (starts_at < ends_at and ends_at <= closed_at),
  CONSTRAINT accounting_period_ends_at_key UNIQUE (ends_at)
);
CREATE TABLE posting_seal (
  seq BIGINT NOT NULL,
  posting_id BIGINT NOT NULL,
  format SMALLINT NOT NULL,
  previous BYTEA NOT NULL,
  digest BYTEA NOT NULL,
  CONSTRAINT posting_seal_pk PRIMARY KEY (seq),
  CONSTRAINT posting_seal_seq_check CHECK (seq > 0),
  CONSTRAINT posting_seal_lengths_check CHECK (octet_length(previous) = 32 and octet_length(digest) = 32),
  CONSTRAINT posting_seal_posting_id_key UNIQUE (posting_id),
  CONSTRAINT posting_seal_posting_id_fk FOREIGN KEY(posting_id) REFERENCES posting (id)
);
CREATE TABLE revenue_share (
  id UUID NOT NULL,
  role TEXT NOT NULL,
  party TEXT NOT NULL,
  model TEXT,
  organization_id UUID,
  ppm INTEGER NOT NULL,
  effective TSTZRANGE NOT NULL,
  created_by TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT revenue_share_pk PRIMARY KEY (id),
  CONSTRAINT revenue_share_role_check CHECK (role in ('model_owner', 'infrastructure_owner', 'reseller')),
  CONSTRAINT revenue_share_ppm_check CHECK (ppm between 0 and 1000000),
  CONSTRAINT revenue_share_effective_check CHECK (not isempty(effective)),
  CONSTRAINT revenue_share_no_overlap EXCLUDE USING gist (text_range(role, role, '[]') WITH =, text_range(party, party, '[]') WITH =, text_range(coalesce(model, ''), coalesce(model, ''), '[]') WITH =, text_range(coalesce(organization_id::text, ''), coalesce(organization_id::text, ''), '[]') WITH =, effective WITH &&),
  CONSTRAINT revenue_share_model_fk FOREIGN KEY(model) REFERENCES model (id),
  CONSTRAINT revenue_share_organization_id_fk FOREIGN KEY(organization_id) REFERENCES organization (id)
);
CREATE TABLE share (
  posting_id BIGINT NOT NULL,
  role TEXT NOT NULL,
  party TEXT NOT NULL,
  model TEXT NOT NULL,
  amount NUMERIC(38, 0) NOT NULL,
  CONSTRAINT share_pk PRIMARY KEY (posting_id, role, party, model),
  CONSTRAINT share_amount_check CHECK (amount <> 0),
  CONSTRAINT share_posting_id_fk FOREIGN KEY(posting_id) REFERENCES posting (id)
);
CREATE INDEX share_party_idx ON share (party, posting_id);
CREATE TABLE model_cost (
  id UUID NOT NULL,
  model TEXT NOT NULL,
  kind TEXT NOT NULL,
  currency TEXT NOT NULL,
  price BIGINT NOT NULL,
  effective DATERANGE NOT NULL,
  created_by TEXT NOT NULL,
  created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
  CONSTRAINT model_cost_pk PRIMARY KEY (id),
  CONSTRAINT model_cost_kind_check CHECK (kind in ('input_token', 'cached_token', 'output_token', 'request', 'gpu_hour', 'kwh')),
  CONSTRAINT model_cost_currency_check CHECK (currency in ('USD', 'EUR', 'KRW', 'JPY')),
  CONSTRAINT model_cost_price_check CHECK (price >= 0),
  CONSTRAINT model_cost_effective_check CHECK (not isempty(effective)),
  CONSTRAINT model_cost_no_overlap EXCLUDE USING gist (text_range(model, model, '[]') WITH =, text_range(kind, kind, '[]') WITH =, effective WITH &&),
  CONSTRAINT model_cost_model_fk FOREIGN KEY(model) REFERENCES model (id)
);
CREATE TABLE machine_use (
  day DATE NOT NULL,
  model TEXT NOT NULL,
  backend TEXT NOT NULL,
  gpu_seconds BIGINT NOT NULL,
  watt_hours BIGINT NOT NULL,
  CONSTRAINT machine_use_pk PRIMARY KEY (day, model, backend),
  CONSTRAINT machine_use_quantities_check CHECK (gpu_seconds >= 0 and watt_hours >= 0),
  CONSTRAINT machine_use_model_fk FOREIGN KEY(model) REFERENCES model (id)
);
CREATE TABLE cost (
  posting_id BIGINT NOT NULL,
  seq INTEGER NOT NULL,
  month DATE NOT NULL,
  model TEXT NOT NULL,
  kind TEXT NOT NULL,
  organization_id UUID,
  currency TEXT NOT NULL,
  amount NUMERIC(38, 0) NOT NULL,
  CONSTRAINT cost_pk PRIMARY KEY (posting_id, seq),
  CONSTRAINT cost_amount_check CHECK (amount <> 0),
  CONSTRAINT cost_posting_id_fk FOREIGN KEY(posting_id) REFERENCES posting (id),
  CONSTRAINT cost_organization_id_fk FOREIGN KEY(organization_id) REFERENCES organization (id)
);
CREATE INDEX cost_month_idx ON cost (month, model);

-- Append-only ---------------------------------------------------------------------------------------------------------

create trigger accounting_period_append_only before update or delete on accounting_period
  for each row execute function tollgate_deny();
create trigger posting_seal_append_only before update or delete on posting_seal
  for each row execute function tollgate_deny();
create trigger share_append_only before update or delete on share for each row execute function tollgate_deny();
create trigger cost_append_only before update or delete on cost for each row execute function tollgate_deny();

create trigger accounting_period_no_truncate before truncate on accounting_period
  for each statement execute function tollgate_deny();
create trigger posting_seal_no_truncate before truncate on posting_seal
  for each statement execute function tollgate_deny();
create trigger share_no_truncate before truncate on share for each statement execute function tollgate_deny();
create trigger cost_no_truncate before truncate on cost for each statement execute function tollgate_deny();

-- Rules that are never edited: they end, and others follow -------------------------------------------------------------

create function tollgate_end_only() returns trigger language plpgsql set search_path = pg_catalog as $$
begin
  if to_jsonb(new) - 'effective' = to_jsonb(old) - 'effective'
    and upper_inf(old.effective) and not upper_inf(new.effective) and not isempty(new.effective)
    and lower(new.effective) is not distinct from lower(old.effective)
    and lower_inc(new.effective) = lower_inc(old.effective)
  then
    return new;
  end if;
  raise exception '% is never edited: end its range, then insert a new row', tg_table_name
    using errcode = 'restrict_violation', table = tg_table_name;
end $$;

create trigger revenue_share_end_only before update on revenue_share
  for each row execute function tollgate_end_only();
create trigger revenue_share_keep before delete on revenue_share for each row execute function tollgate_deny();
create trigger revenue_share_no_truncate before truncate on revenue_share
  for each statement execute function tollgate_deny();
create trigger model_cost_end_only before update on model_cost for each row execute function tollgate_end_only();
create trigger model_cost_keep before delete on model_cost for each row execute function tollgate_deny();
create trigger model_cost_no_truncate before truncate on model_cost
  for each statement execute function tollgate_deny();
