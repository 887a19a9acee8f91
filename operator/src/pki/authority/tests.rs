use std::sync::Arc;

use rustls::{
    RootCertStore,
    client::WebPkiServerVerifier,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};

use super::*;

const NOW: i64 = 1_800_000_000;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn server() -> Request {
    let names = ["concordat-webhook.concordat-system.svc", "127.0.0.1"].map(Into::into).to_vec();
    Request { common_name: "concordat-webhook".into(), names, usage: Usage::Server }
}

fn client(name: &str) -> Request {
    Request { common_name: name.into(), names: Vec::new(), usage: Usage::Client }
}

fn roots(trusted: &str) -> Arc<RootCertStore> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(trusted.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    Arc::new(roots)
}

/// Whether rustls takes the certificate as a server's of this name, or without a name as a client's.
fn accepted(certificate: &str, trusted: &str, name: Option<&str>, now: i64) -> Result<(), rustls::Error> {
    use rustls::client::danger::ServerCertVerifier;
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(now as u64));
    match name {
        Some(name) => WebPkiServerVerifier::builder(roots(trusted))
            .build()
            .unwrap()
            .verify_server_cert(&leaf, &[], &ServerName::try_from(name).unwrap(), &[], now)
            .map(drop),
        None => WebPkiClientVerifier::builder(roots(trusted))
            .build()
            .unwrap()
            .verify_client_cert(&leaf, &[], now)
            .map(drop),
    }
}

#[test]
fn what_it_signs_is_good_for_what_was_asked_and_nothing_else() {
    let authority = Authority::new(at(NOW)).unwrap();
    let trusted = authority.trusted();
    let server = authority.issue(&server(), at(NOW)).unwrap().certificate;
    for name in ["concordat-webhook.concordat-system.svc", "127.0.0.1"] {
        accepted(&server, &trusted, Some(name), NOW).unwrap();
        accepted(&server, &trusted, Some(name), NOW - SKEW).unwrap();
        accepted(&server, &trusted, Some(name), NOW + LEAF - 1).unwrap();
        accepted(&server, &trusted, Some(name), NOW + LEAF + 1).unwrap_err();
    }
    accepted(&server, &trusted, Some("elsewhere"), NOW).unwrap_err();
    accepted(&server, &trusted, None, NOW).unwrap_err();
    accepted(&server, &Authority::new(at(NOW)).unwrap().trusted(), Some("127.0.0.1"), NOW).unwrap_err();

    let client = authority.issue(&client("root"), at(NOW)).unwrap().certificate;
    accepted(&client, &trusted, None, NOW).unwrap();
    accepted(&client, &trusted, Some("127.0.0.1"), NOW).unwrap_err();
    let peer = Request { usage: Usage::Peer, ..self::server() };
    let peer = authority.issue(&peer, at(NOW)).unwrap().certificate;
    accepted(&peer, &trusted, None, NOW).unwrap();
    accepted(&peer, &trusted, Some("127.0.0.1"), NOW).unwrap();
}

#[test]
fn a_certificate_says_what_was_asked_for_and_is_told_from_another() {
    let authority = Authority::new(at(NOW)).unwrap();
    let long = client(&format!("concordat:{}", "n".repeat(63)));
    for request in [server(), client("root"), long] {
        let Issued { certificate, key } = authority.issue(&request, at(NOW)).unwrap();
        let read = Certificate::read(&certificate).unwrap();
        assert_eq!((read.life.not_before, read.life.not_after), (at(NOW - SKEW), at(NOW + LEAF)));
        assert!(read.fits(&request, &key));
        assert!(!read.fits(&Request { common_name: "other".into(), ..request.clone() }, &key));
        assert!(!read.fits(&Request { names: vec!["a".into()], ..request.clone() }, &key));
        assert!(!read.fits(&request, &authority.issue(&request, at(NOW)).unwrap().key));
        assert!(!read.fits(&request, "no key"));
    }
}

#[test]
fn it_is_read_as_it_was_written() {
    let mut authority = Authority::new(at(NOW)).unwrap();
    for step in 0..40 {
        assert_eq!(Authority::read(&authority.data()).unwrap(), authority, "{step}");
        let now = at(NOW + step * AUTHORITY / 12);
        authority = authority.turn(now, None, true).unwrap().unwrap_or(authority);
    }
    let mut data = authority.data();
    data.insert(KEY.into(), KeyPair::generate().unwrap().serialize_pem().into_bytes());
    assert_eq!(Authority::read(&data).unwrap_err().to_string(), "tls.key is not the key of tls.crt");
    data.remove(CERTIFICATE);
    assert_eq!(Authority::read(&data).unwrap_err().to_string(), "tls.crt is missing");
}

/// Whether, over 25 years in steps of five days, everybody trusts everybody: certificates are renewed when they are due, and what
/// is trusted is read again at most so many days after it changed.
fn all_trust(late: i64, turn: impl Fn(&Authority, Timestamp) -> Option<Authority>) -> bool {
    let mut authority = Authority::new(at(NOW)).unwrap();
    let mut leaf = authority.issue(&server(), at(NOW)).unwrap().certificate;
    // What somebody trusts who reads it every so many days.
    let mut trusted = authority.trusted();
    for day in (0..25 * 365).step_by(5) {
        let now = NOW + day * DAY;
        let turned = turn(&authority, at(now));
        if day % late == 0 {
            trusted = authority.trusted();
        }
        if turned.is_some() || Certificate::read(&leaf).unwrap().life.due(at(now)) {
            authority = turned.unwrap_or(authority);
            leaf = authority.issue(&server(), at(now)).unwrap().certificate;
        }
        if accepted(&leaf, &trusted, Some("127.0.0.1"), now).is_err() {
            return false;
        }
    }
    true
}

#[test]
fn nobody_is_distrusted_while_one_authority_follows_another() {
    assert!(all_trust(1, |authority, now| authority.turn(now, None, true).unwrap()));
    // etcd, say, was last started 18 months ago.
    assert!(all_trust(540, |authority, now| authority.turn(now, None, true).unwrap()));
    // Planted: the next one signs as soon as it is there.
    assert!(!all_trust(540, |authority, now| {
        let turned = authority.turn(now, None, true).unwrap()?;
        turned.next.clone().map(|signer| Authority {
            signer,
            since: now.as_second(),
            next: None,
            former: vec![authority.signer.certificate.clone()],
        })
    }));
    // Planted: there never is a next one.
    assert!(!all_trust(1, |_, _| None));
}

/// Who signs, will sign and signed, by when each was made, in seconds after `NOW`.
fn of(authority: &Authority) -> (i64, Option<i64>, Vec<i64>) {
    let made = |pem: &String| made(&Certificate::read(pem).unwrap().life) - NOW;
    let next = authority.next.as_ref().map(|next| made(&next.certificate));
    (made(&authority.signer.certificate), next, authority.former.iter().map(made).collect())
}

#[test]
fn a_turn_that_is_asked_for_goes_step_by_step_and_waits_for_etcd() {
    let mut authority = Authority::new(at(NOW)).unwrap();
    let asked = Some(Asked { since: at(NOW + 1_000), pause: Duration::from_mins(1) });
    let mut step = |second: i64, known: bool| {
        let turned = authority.turn(at(NOW + second), asked, known).unwrap();
        let changed = turned.is_some();
        authority = turned.unwrap_or(authority.clone());
        (changed, of(&authority))
    };
    assert_eq!(step(1_000, true), (true, (0, Some(1_000), vec![])));
    // Neither before the pause is over nor before etcd knows the next one does that sign.
    assert_eq!(step(1_059, true), (false, (0, Some(1_000), vec![])));
    assert_eq!(step(1_060, false), (false, (0, Some(1_000), vec![])));
    assert_eq!(step(1_070, true), (true, (1_000, None, vec![0])));
    // The former one is trusted for as long again, and until etcd has seen who signs now.
    assert_eq!(step(1_129, true), (false, (1_000, None, vec![0])));
    assert_eq!(step(1_130, false), (false, (1_000, None, vec![0])));
    assert_eq!(step(1_130, true), (true, (1_000, None, vec![])));
    // What was asked for is done, once.
    assert_eq!(step(9_999, true), (false, (1_000, None, vec![])));
}

#[test]
fn whoever_is_asked_for_anew_is_no_older_than_that() {
    let old =
        Authority { next: Some(authority(at(NOW - 5)).unwrap()), ..Authority::new(at(NOW - 9)).unwrap() };
    let asked = Some(Asked { since: at(NOW), pause: Duration::ZERO });
    // Whoever read the Secret has the key of the next one, too.
    let turned = old.turn(at(NOW), asked, true).unwrap().unwrap();
    assert_eq!(of(&turned), (-9, Some(0), vec![]));
    // An old one that nobody complains of stays as long as its signatures do.
    let former = Authority { former: vec![old.signer.certificate], ..Authority::new(at(NOW)).unwrap() };
    assert_eq!(former.turn(at(NOW + 9), None, true).unwrap(), None);
    assert_eq!(of(&former.turn(at(NOW + 9), asked, true).unwrap().unwrap()), (0, None, vec![]));
}

#[test]
fn nobody_signs_whom_etcd_does_not_know() {
    let authority = Authority::new(at(NOW)).unwrap();
    let turned = authority.turn(at(NOW + AUTHORITY * 2 / 3), None, false).unwrap().unwrap();
    assert!(turned.next.is_some());
    let due = at(NOW + AUTHORITY * 5 / 6 + DAY);
    assert_eq!(turned.turn(due, None, false).unwrap(), None);
    assert!(turned.turn(due, None, true).unwrap().unwrap().next.is_none());
}
