import json, random
from contextlib import closing
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from tests.support.warehouse import Event

START = datetime(2026, 3, 1, tzinfo=UTC)

def rec(w, proc, rows):
    with closing(w.connect()) as c:
        got = c.execute(f"select * from token_tracking_raw.{proc}(%s)", (json.dumps(rows, default=str),)).fetchone()
        assert got[2] == 0, got
def hour(h): return (START + timedelta(hours=h)).isoformat()

def test_it(warehouse, project):
    rng = random.Random(5)
    w = warehouse
    project.must("seed")
    serial = 0
    for step in range(4):
        events=[]
        for _ in range(60):
            serial += 1
            i, o = rng.choice([10, 1000, 272000, 272001, 33000]), rng.choice([None, 7, 4000])
            events.append(Event(f"k{serial}", START + timedelta(minutes=rng.randrange(0, 60*24*3)), tenant=rng.choice("ab"), tokens=i+(o or 0)+rng.choice([0,0,5]), input_tokens=i, output_tokens=o, model=rng.choice(["gpt-4o","alias","x"]), provider=rng.choice(["openai",None])))
        w.insert(events)
        if step:
            nows = w.rows(now)
            w.insert(voids=[("a","k1"),("b","k2"),("a","k3"),("b","k4")])
            project.must("run")
            nows2 = w.rows(now)
            assert nows2 == w.rows("select * from token_tracking.daily_token_cost order by 1,2,3,4,5,6,7,8,9,10,11")
        def amount(): return rng.choice([Decimal("2.5"),Decimal("0.08333333333333334"),0,None,10])
        rec(w,"record_model_prices",[{"price_list":rng.choice(["list","list","c"]),"provider":"openai","model":rng.choice(["gpt-4o","x"]),"token_kind":k,"context_over":rng.choice([0,0,272000]),"currency":rng.choice(["USD","EUR"]),"valid_from":hour(rng.randrange(-5,60)),"amount": (lambda a: a if a is None else float(a))(amount())} for k in ["input","cache_read","cache_write","cache_write_long","output","reasoning","unsplit"] for _ in range(2)])
        rec(w,"record_model_aliases",[{"provider":rng.choice(["openai","unknown"]),"alias":rng.choice(["alias","gpt-4o"]),"valid_from":hour(rng.randrange(0,60)),"priced_provider":"openai","priced_model":"x"}])
        rec(w,"record_price_list_rules",[{"price_list":"c","valid_from":hour(rng.randrange(0,60)),"base_list":"list","factor":1.2},{"price_list":"d","valid_from":hour(rng.randrange(0,60)),"base_list":"c","factor":0.5}])
        rec(w,"record_tenant_price_lists",[{"tenant_id":rng.choice("ab"),"valid_from":hour(rng.randrange(0,60)),"price_list":rng.choice(["c","d",None])}])
        if step: nows = w.rows(now)
        project.must("build", "--exclude", "resource_type:unit_test")
        rows = w.rows("select * from token_tracking.daily_token_cost order by 1,2,3,4,5,6,7,8,9,10,11")
        months = w.rows("select * from token_tracking.monthly_token_cost order by 1,2,3,4,5,6,7,8,9,10,11")
        now = "select * from token_tracking.daily_token_cost_now order by 1,2,3,4,5,6,7,8,9,10,11"
        assert rows == w.rows(now)
        if step: assert nows == rows
        print(step, len(rows), rows[:2], w.status())
        project.must("run","--full-refresh")
        assert rows == w.rows("select * from token_tracking.daily_token_cost order by 1,2,3,4,5,6,7,8,9,10,11")
        assert months == w.rows("select * from token_tracking.monthly_token_cost order by 1,2,3,4,5,6,7,8,9,10,11")
        project.must("build","--select","tag:full")
    print(w.rows("select * from token_tracking.unpriced_usage"), w.rows("select * from token_tracking.hourly_token_cost limit 2"))
