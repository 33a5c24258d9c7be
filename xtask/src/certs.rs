//! `cargo xtask certs`: a CA and one certificate per host, for tests, demos and first steps.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};

/// The CA's name. It does not depend on the deployment, so that one CA can serve several.
const CA_NAME: &str = "Flotilla test CA";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_DAYS: u32 = 3650;
/// How far into the past a certificate is valid, for peers whose clocks are late.
const CLOCK_MARGIN: Duration = Duration::from_secs(60 * 60);

#[derive(clap::Args)]
pub(crate) struct Certs {
    /// The folder for ca.pem, ca.key, host-N.pem and host-N.key; a CA that is there is reused.
    #[arg(long)]
    out: PathBuf,
    /// The deployment that the certificates are good for.
    #[arg(long)]
    deployment: String,
    /// The hosts' ids.
    #[arg(long, value_delimiter = ',', required = true)]
    hosts: Vec<u64>,
    /// Days for which the hosts' certificates are valid.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
}

impl Certs {
    pub(crate) fn run(self) -> Result<()> {
        let reused = make(&self.out, &self.deployment, &self.hosts, self.days)?;
        println!(
            "{} CA and {} host certificates for deployment {} in {}",
            if reused { "reused the" } else { "made a" },
            self.hosts.len(),
            self.deployment,
            self.out.display()
        );
        Ok(())
    }
}

/// Makes certificates for `hosts` in `out`; returns whether a CA was there and was reused.
pub(crate) fn make(out: &Path, deployment: &str, hosts: &[u64], days: u32) -> Result<bool> {
    check_deployment(deployment)?;
    ensure!(!hosts.contains(&0), "0 is not a host id");
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let (issuer, reused) = certificate_authority(out)?;
    for host in hosts {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![format!("h{host}.{deployment}.raft")])?;
        params.distinguished_name = Default::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("host {host} of {deployment}"));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, days)?;
        let certificate = params.signed_by(&key, &issuer)?;
        write(
            &out.join(format!("host-{host}.pem")),
            &certificate.pem(),
            0o644,
        )?;
        write(
            &out.join(format!("host-{host}.key")),
            &key.serialize_pem(),
            0o600,
        )?;
    }
    Ok(reused)
}

/// A deployment is one label of a DNS name.
fn check_deployment(deployment: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(
        (1..=63).contains(&deployment.len())
            && deployment.bytes().all(allowed)
            && !deployment.starts_with('-')
            && !deployment.ends_with('-'),
        "a deployment is 1 to 63 of a-z, 0-9 and -, and neither begins nor ends with -: {deployment:?}"
    );
    Ok(())
}

fn certificate_authority(out: &Path) -> Result<(Issuer<'static, KeyPair>, bool)> {
    let (pem_path, key_path) = (out.join("ca.pem"), out.join("ca.key"));
    let mut params = CertificateParams::default();
    params.distinguished_name = Default::default();
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    match (pem_path.exists(), key_path.exists()) {
        (true, true) => {
            let key = KeyPair::from_pem(&fs::read_to_string(&key_path)?)
                .with_context(|| format!("{} is not a private key", key_path.display()))?;
            let certificate = pem::parse(fs::read(&pem_path)?)
                .with_context(|| format!("{} is not a certificate", pem_path.display()))?;
            // Host certificates name the CA by its name and key: both must be those of the file.
            ensure!(
                contains(certificate.contents(), CA_NAME.as_bytes())
                    && contains(certificate.contents(), &key.subject_public_key_info()),
                "{} was not made by this command together with {}; use another folder",
                pem_path.display(),
                key_path.display()
            );
            Ok((Issuer::new(params, key), true))
        }
        (false, false) => {
            let key = KeyPair::generate()?;
            set_validity(&mut params, CA_DAYS)?;
            let certificate = params.self_signed(&key)?;
            write(&key_path, &key.serialize_pem(), 0o600)?;
            write(&pem_path, &certificate.pem(), 0o644)?;
            Ok((Issuer::new(params, key), false))
        }
        _ => bail!("{} holds only one of ca.pem and ca.key", out.display()),
    }
}

fn set_validity(params: &mut CertificateParams, days: u32) -> Result<()> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .context("the clock is before 1970")?;
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(CLOCK_MARGIN);
    params.not_after = epoch + now + DAY * days;
    Ok(())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle)
}

/// Writes a file that is never readable by more than `mode` says, not even for a moment.
fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn host_certificates_carry_their_name_and_keys_are_private() {
        let dir = tempfile::tempdir().expect("a folder");
        assert!(!make(dir.path(), "demo", &[1, 2], 30).expect("it makes"));
        for host in [1, 2] {
            let text = fs::read(dir.path().join(format!("host-{host}.pem"))).expect("a file");
            let certificate = pem::parse(text).expect("a certificate");
            assert!(contains(
                certificate.contents(),
                format!("h{host}.demo.raft").as_bytes()
            ));
        }
        for name in ["ca.key", "host-1.key", "host-2.key"] {
            let mode = fs::metadata(dir.path().join(name))
                .expect("a file")
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_ca_that_is_there_is_reused() {
        let dir = tempfile::tempdir().expect("a folder");
        make(dir.path(), "demo", &[1], 30).expect("it makes");
        let before = fs::read(dir.path().join("ca.pem")).expect("a file");
        assert!(make(dir.path(), "other", &[4], 30).expect("it makes"));
        assert_eq!(fs::read(dir.path().join("ca.pem")).expect("a file"), before);
        assert!(dir.path().join("host-1.pem").exists() && dir.path().join("host-4.pem").exists());
    }

    #[test]
    fn a_ca_with_a_foreign_key_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        make(dir.path(), "demo", &[1], 30).expect("it makes");
        let foreign = KeyPair::generate().expect("a key");
        write(&dir.path().join("ca.key"), &foreign.serialize_pem(), 0o600).expect("a file");
        assert!(make(dir.path(), "demo", &[1], 30).is_err());
        fs::remove_file(dir.path().join("ca.key")).expect("removed");
        assert!(make(dir.path(), "demo", &[1], 30).is_err());
    }

    #[test]
    fn names_that_are_no_dns_label_are_refused() {
        for name in ["", "a.b", "Demo", "-a", "a-", "a b", &"a".repeat(64)] {
            assert!(check_deployment(name).is_err(), "{name:?}");
        }
        assert!(check_deployment("demo-7").is_ok());
    }
}
