use super::*;
use crate::model::events::{How, Owner};
use crate::model::reading::Reading;
use crate::model::tcp::state::{ESTABLISHED, SYN_RECV};

const BEGUN: u64 = 1000;
const HZ: u64 = 250;

/// An account of the connection at this address, whose first entry is of `since`.
fn account(socket: u64, since: u64, tgid: u32, why: AccountWhy, bytes_sent: u64, mono_ns: u64) -> Account {
    let owner = Owner { tgid, since, how: How::Send as u8, ..Owner::default() };
    let reading = Reading { bytes_sent, ..Reading::default() };
    let (why, state) = (why as u8, ESTABLISHED);
    Account { owner, reading, socket, mono_ns, why, state, wanted: 1, ..Account::default() }
}

fn sent(balance: &Balance, tgid: u32) -> Option<(u64, Fates, bool)> {
    let row = balance.rows.iter().find(|(key, _)| key.tgid == tgid)?.1;
    Some((row.counters.bytes_sent, row.fates, row.complete))
}

/// A run: accounts before it begins, during the run, and at its end.
fn run(opening: &[Account], during: &[Account], closing: &[Account]) -> Balance {
    let mut balance = Balance::new(HZ);
    let note = |balance: &mut Balance, accounts: &[Account]| {
        accounts.iter().for_each(|account| _ = balance.note(account));
    };
    note(&mut balance, opening);
    balance.begin(BEGUN);
    note(&mut balance, during);
    balance.end();
    note(&mut balance, closing);
    balance
}

const ENDED: Fates = Fates { open: 0, ended: 1, reset: 1, timed_out: 0, refused: 0 };
const OPEN: Fates = Fates { open: 1, ended: 0, reset: 0, timed_out: 0, refused: 0 };

#[test]
fn only_the_time_of_the_run_counts() {
    use AccountWhy::{Ended, Open};
    let opening = [account(1, 10, 7, Open, 100, 900), account(2, 20, 8, Open, 50, 901)];
    let during = [account(1, 10, 7, Ended, 130, 2000), account(3, 1500, 9, Ended, 5, 2001)];
    let closing = [account(2, 20, 8, Open, 51, 3000), account(2, 20, 8, Open, 51, 3001)];
    let balance = run(&opening, &during, &closing);
    assert_eq!(sent(&balance, 7), Some((30, ENDED, false)));
    assert_eq!(sent(&balance, 8), Some((1, OPEN, false)), "once, though it was shown twice");
    assert_eq!(sent(&balance, 9), Some((5, ENDED, true)));
}

#[test]
fn an_end_before_the_run_counts_nothing_wherever_its_account_comes() {
    use AccountWhy::{Ended, Open};
    let (open, ended) = (account(1, 10, 7, Open, 100, 900), account(1, 10, 7, Ended, 100, 901));
    for opening in [[open, ended], [ended, open]] {
        assert_eq!(sent(&run(&opening, &[], &[]), 7), None);
    }
    // Its account is read only after the run has begun; then another socket has its address.
    let balance = run(&[open], &[ended, account(1, 1100, 7, Ended, 3, 1200)], &[]);
    assert_eq!(sent(&balance, 7), Some((3, ENDED, true)));
}

#[test]
fn each_owner_gets_what_was_counted_in_its_time() {
    use AccountWhy::{Ended, Open, Taken};
    let during = [account(1, 10, 7, Taken, 120, 1100), account(1, 10, 8, Taken, 150, 1200)];
    let mut all = during.to_vec();
    all.push(account(1, 10, 7, Ended, 151, 1300));
    // A process that did not hold the lock found the entry just before the end.
    all.push(account(1, 10, 7, Taken, 151, 1301));
    let balance = run(&[account(1, 10, 7, Open, 100, 900)], &all, &[account(1, 10, 7, Open, 151, 3000)]);
    assert_eq!(sent(&balance, 7), Some((21, ENDED, false)));
    assert_eq!(sent(&balance, 8), Some((30, Fates::default(), false)));
}

#[test]
fn accounts_in_the_other_order_than_their_readings_count_nothing_twice() {
    use AccountWhy::{Ended, Taken};
    let taken = [account(1, 1010, 7, Taken, 130, 1100), account(1, 1010, 8, Taken, 120, 1101)];
    let balance = run(&[], &[taken[0], taken[1], account(1, 1010, 7, Ended, 150, 1200)], &[]);
    assert_eq!(sent(&balance, 7), Some((150, ENDED, true)));
    assert_eq!(sent(&balance, 8), Some((0, Fates::default(), true)));
}

#[test]
fn a_connection_of_an_unwanted_owner_counts_for_the_next_owner_from_the_change_on() {
    use AccountWhy::{Ended, Taken};
    let taken = Account { wanted: 0, ..account(1, 1010, 7, Taken, 120, 1100) };
    let balance = run(&[], &[taken, account(1, 1010, 8, Ended, 150, 1200)], &[]);
    assert_eq!((sent(&balance, 7), sent(&balance, 8)), (None, Some((30, ENDED, true))));
}

/// The bytes that each of these processes sent in the interval that ends now, and its connections that are open and that
/// ended in it.
fn interval(balance: &mut Balance, tgids: [u32; 3]) -> [Option<(u64, u64, u64)>; 3] {
    let rows = balance.take_interval(0).0;
    let of = |tgid| rows.iter().find(|(key, _)| key.tgid == tgid).map(|(_, row)| row);
    tgids.map(|tgid| of(tgid).map(|row| (row.counters.bytes_sent, row.fates.open, row.fates.ended)))
}

#[test]
fn intervals_divide_the_sums_of_a_run_and_change_none() {
    use AccountWhy::{Ended, Open, Taken};
    let mut balance = Balance::new(HZ);
    balance.note(&account(1, 10, 7, Open, 100, 900));
    balance.begin(BEGUN);
    let ticks: [&[Account]; 3] = [
        // The map showed the first one twice.
        &[account(1, 10, 7, Open, 120, 2000), account(1, 10, 7, Open, 121, 2001), account(2, 1500, 8, Open, 5, 2002)],
        // The first has changed hands since, and the second ends while the tick reads.
        &[account(1, 10, 7, Taken, 130, 2500), account(1, 10, 9, Open, 135, 3000), account(2, 1500, 8, Ended, 9, 3001)],
        &[account(2, 1500, 8, Open, 9, 4000), account(1, 10, 9, Open, 135, 4001)],
    ];
    let told = ticks.map(|accounts| {
        balance.tick();
        accounts.iter().for_each(|account| _ = balance.note(account));
        interval(&mut balance, [7, 8, 9])
    });
    let expected = [
        [Some((21, 1, 0)), Some((5, 1, 0)), None],
        [Some((9, 0, 0)), Some((4, 0, 1)), Some((5, 1, 0))],
        [None, None, Some((0, 1, 0))],
    ];
    assert_eq!(told, expected);
    balance.end();
    balance.note(&account(1, 10, 9, Open, 140, 5000));
    assert_eq!(interval(&mut balance, [7, 8, 9]), [None, None, Some((5, 1, 0))]);
    assert_eq!([7, 8, 9].map(|tgid| sent(&balance, tgid).unwrap().0), [30, 9, 10]);
    assert_eq!(sent(&balance, 9).unwrap().1, OPEN);
}

#[test]
fn a_connection_that_ends_while_the_open_ones_are_read_counts_once() {
    use AccountWhy::{Ended, Open};
    let closing = [account(1, 1010, 7, Open, 120, 3000), account(1, 1010, 7, Ended, 125, 3001)];
    assert_eq!(sent(&run(&[], &[], &closing), 7), Some((125, ENDED, true)));
    assert_eq!(sent(&run(&[], &[], &[closing[1], closing[0]]), 7), Some((125, ENDED, true)));
}

#[test]
fn an_interval_has_what_rows_gained_that_were_folded_in_it() {
    let mut balance = Balance::new(HZ);
    balance.begin(BEGUN);
    let rows = 100;
    let mut all = 0;
    for round in 0..2 {
        for tgid in 1..=rows {
            let time = BEGUN + (round * rows + tgid) * LATE_NS / 100;
            balance.note(&account(tgid, time - 1, tgid as u32, AccountWhy::Ended, tgid, time));
            if balance.rows.len() > 7 {
                balance.fold(&ProcessKey { tgid: tgid as u32, ..ProcessKey::default() }, false);
            }
        }
        let (taken, folded) = balance.take_interval(0);
        let gained: u64 = taken.values().chain([&folded.row]).map(|row| row.counters.bytes_sent).sum();
        assert_eq!(gained, rows * (rows + 1) / 2);
        all += gained;
    }
    let kept = balance.rows.values().chain([&balance.folded.row]).map(|row| row.counters.bytes_sent);
    assert_eq!(kept.sum::<u64>(), all);
}

#[test]
fn what_a_tick_cannot_know_counts_at_the_next_that_knows_it() {
    use AccountWhy::{Ended, Open};
    let mut balance = Balance::new(HZ);
    balance.begin(BEGUN);
    let dropped = |bytes, mut account: Account| {
        (account.reading.bytes_sent, account.reading.locked) = (bytes, 1);
        account
    };
    let mut told = Vec::new();
    for accounts in [
        account(1, 1010, 7, Open, 50, 1100),
        dropped(70, account(1, 1010, 7, Open, 0, 1200)),
        account(1, 1010, 7, Open, 90, 1300),
        dropped(100, account(1, 1010, 7, Ended, 0, 1400)),
    ] {
        balance.tick();
        balance.note(&accounts);
        told.push(balance.take_interval(0).0.values().next().unwrap().counters.local_bytes);
    }
    assert_eq!(told, [Some(0), Some(70), Some(0), Some(30)]);
    assert_eq!(balance.rows.values().next().unwrap().counters.local_bytes, Some(100));
    // Nothing comes after the end.
    let balance = run(&[], &[], &[account(1, 1010, 7, Open, 50, 1100)]);
    assert_eq!(balance.rows.values().next().unwrap().counters.local_bytes, None);
}

#[test]
fn a_listener_counts_what_it_drops_for_each_owner_and_is_no_connection() {
    use AccountWhy::{Ended, Open, Taken};
    let listener = |drops, queue, mut account: Account| {
        let of = ReadingOf::Listener as u8;
        account.reading = Reading { of, drops, queue, backlog: 4, ..Reading::default() };
        account
    };
    let during = [
        listener(12, 0, account(1, 10, 7, Taken, 0, 1100)),
        listener(13, 5, account(1, 10, 8, Ended, 0, 1200)),
        listener(3, 0, account(2, 1010, 7, Ended, 0, 1300)),
    ];
    let balance = run(&[listener(10, 3, account(1, 10, 7, Open, 0, 900))], &during, &[]);
    let row = |tgid| balance.rows.iter().find(|(key, _)| key.tgid == tgid).unwrap().1;
    let told = |tgid| (row(tgid).counters.listen_drops, row(tgid).accepts.map(|accepts| accepts.queue));
    assert_eq!((told(7), told(8)), ((5, Some(0)), (1, Some(5))));
    assert_eq!([7, 8].map(|tgid| (row(tgid).fates, row(tgid).complete)), [(Fates::default(), true); 2]);
    let mut balance = Balance::new(HZ);
    balance.begin(BEGUN);
    assert!(balance.note(&during[2]).is_none(), "its end is no connection's end");
    // It listens again after shutdown(), so that its entry is a new one.
    let again = |drops, mut account: Account| {
        account.owner.own_inode = 77;
        listener(drops, 0, account)
    };
    let during = [again(5, account(3, 1010, 7, Ended, 0, 1100)), again(7, account(3, 1110, 7, Ended, 0, 1200))];
    let dropped = |balance: &Balance| balance.rows.values().next().map(|row| row.counters.listen_drops);
    assert_eq!(dropped(&run(&[], &during, &[])), Some(7));
    assert_eq!(dropped(&run(&[], &during[..1], &[again(9, account(3, 1110, 7, Open, 0, 3000))])), Some(9));
    // It is older than the run, and was not seen at the beginning.
    let unseen =
        [listener(5, 0, account(4, 900, 7, Taken, 0, 1100)), listener(6, 0, account(4, 900, 7, Ended, 0, 1200))];
    assert_eq!(dropped(&run(&[], &unseen[1..], &[])), None);
    assert_eq!(dropped(&run(&[], &unseen, &[])), Some(1));
}

#[test]
fn subflows_of_mptcp_have_one_life_and_each_counts_from_nothing() {
    use AccountWhy::Ended;
    let during = [account(1, 1100, 7, Ended, 20, 1200), account(1, 1100, 7, Ended, 30, 1300)];
    assert_eq!(sent(&run(&[], &during, &[]), 7).map(|(sent, ..)| sent), Some(50));
    // With other ports it is another connection, also while it is open.
    let mut open = account(1, 1100, 7, AccountWhy::Open, 5, 1400);
    open.flow.sport = 9;
    assert_eq!(sent(&run(&[], &during[..1], &[open]), 7).map(|(sent, ..)| sent), Some(25));
}

#[test]
fn a_subflow_that_ends_after_its_parent_counts_for_its_last_owner() {
    let mut balance = Balance::new(HZ);
    balance.begin(BEGUN);
    balance.tick();
    let mut open = account(1, 1100, 7, AccountWhy::Open, 20, 1200);
    open.owner.socket = 99;
    balance.note(&open);
    let nobody = Owner { how: How::Unknown as u8, ..Owner::default() };
    // Nobody passes a filter by process.
    balance.note(&Account { owner: nobody, wanted: 0, ..account(1, 0, 7, AccountWhy::Ended, 30, 1300) });
    balance.end();
    assert_eq!(sent(&balance, 7).map(|(sent, ..)| sent), Some(30));
    assert_eq!(balance.rows.len(), 1, "nobody has a row");
    // The next connection at that address is another one.
    balance.note(&Account { owner: nobody, ..account(1, 0, 7, AccountWhy::Ended, 5, 1400) });
    assert_eq!((sent(&balance, 7).map(|(sent, ..)| sent), balance.rows.len()), (Some(30), 2));
}

#[test]
fn a_connection_seeded_from_proc_has_no_figures_and_a_lost_race_is_no_connection() {
    let ended = account(1, 0, 7, AccountWhy::Ended, 20, 1200);
    assert_eq!(sent(&run(&[], &[ended], &[]), 7), Some((0, ENDED, false)));
    let race = Account { state: SYN_RECV, ..account(1, 1100, 7, AccountWhy::Ended, 0, 1200) };
    assert_eq!(sent(&run(&[], &[race], &[]), 7), None);
    let fast_open = Account { reading: Reading { bytes_received: 1, ..Reading::default() }, ..race };
    assert!(sent(&run(&[], &[fast_open], &[]), 7).is_some());
}

#[test]
fn ended_connections_are_forgotten() {
    let mut balance = Balance::new(HZ);
    balance.begin(BEGUN);
    for tgid in 1..=3 * MANY as u64 {
        let time = BEGUN + tgid * LATE_NS / 100;
        balance.note(&account(tgid, time - 1, tgid as u32, AccountWhy::Ended, tgid, time));
    }
    assert!(balance.before.len() <= 2 * MANY, "{}", balance.before.len());
}

#[test]
fn a_row_is_not_complete_if_its_process_can_have_been_folded_before() {
    let mut balance = Balance::new(HZ);
    balance.begin(BEGUN);
    let ended = |tgid: u32, born| {
        let account = account(tgid.into(), 1500, tgid, AccountWhy::Ended, 5, 2000);
        Account { owner: Owner { born, ..account.owner }, ..account }
    };
    let key = |tgid, born| ProcessKey { tgid, born, ..ProcessKey::default() };
    balance.note(&ended(7, 100));
    balance.note(&ended(8, 90));
    balance.note(&ended(11, 200));
    assert!(balance.fold(&key(7, 100), true) && !balance.fold(&key(9, 50), true) && balance.fold(&key(11, 200), false));
    for (tgid, born) in [(7, 100), (8, 90), (9, 50), (10, 101)] {
        balance.note(&ended(tgid, born));
    }
    let complete = [7, 8, 9, 10].map(|tgid| sent(&balance, tgid).unwrap().2);
    assert_eq!(complete, [false, true, false, true]);
    assert_eq!((balance.folded.rows, balance.folded.row.counters.bytes_sent), (2, 10));
}
