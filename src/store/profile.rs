//! AWS profiles, as `aws configure` writes them: credentials for users who set no variables.
//!
//! Takes the environment; reads the profile that `AWS_PROFILE` names, else `default`, from `~/.aws/credentials` and
//! `~/.aws/config`, or from the files that `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE` name. Gives its keys, token,
//! region and endpoint; the environment wins over them. Refuses a profile whose keys come from elsewhere (SSO, a role, a
//! process), with the command that turns them into variables. The roles of machines and pods need no profile: the store's
//! client finds them.

use std::path::PathBuf;

use configparser::ini::{Ini, IniDefault};

use crate::error::{Error, Result};

/// Settings of a profile that a store understands.
const USED: [&str; 6] = [
    "aws_access_key_id",
    "aws_secret_access_key",
    "aws_session_token",
    "region",
    "endpoint_url",
    "aws_endpoint_url_s3",
];

/// Settings of a profile whose keys come from elsewhere.
const ELSEWHERE: [&str; 5] =
    ["sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file"];

/// The profile's settings, named like the variables: `aws_region`. Empty where the environment has keys, or there is no
/// profile.
///
/// # Errors
/// [`Error::Config`] where the named profile does not exist, a file is no file of profiles, or the profile's keys come
/// from elsewhere.
pub(super) fn options(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<(String, String)>> {
    let set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    if set("AWS_ACCESS_KEY_ID") || set("AWS_SKIP_SIGNATURE") || set("AWS_WEB_IDENTITY_TOKEN_FILE") {
        return Ok(Vec::new());
    }
    let named = variable("AWS_PROFILE").filter(|name| !name.is_empty());
    let name = named.as_deref().unwrap_or("default");
    let home = variable("HOME").map(PathBuf::from).unwrap_or_default();
    let file = |name: &str, usual: &str| variable(name).map_or_else(|| home.join(".aws").join(usual), PathBuf::from);
    // The second one wins.
    let places = [
        (
            file("AWS_CONFIG_FILE", "config"),
            if name == "default" { name.to_owned() } else { format!("profile {name}") },
        ),
        (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), name.to_owned()),
    ];
    let mut found = Vec::new();
    let mut exists = false;
    for (path, section) in places {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let mut ini = Ini::new_from_defaults(ini_of_aws());
        // The parser's message repeats the line, which may hold a key.
        let sections = ini.read(text).map_err(|_| {
            Error::Config(format!(
                "{} is not a file of AWS profiles: correct it, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
                path.display()
            ))
        })?;
        let Some(settings) = sections.get(&section) else { continue };
        exists = true;
        found.extend(settings.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
    }
    if !exists {
        return match named {
            None => Ok(Vec::new()),
            Some(name) => Err(Error::Config(format!(
                "AWS_PROFILE is {name}, but neither ~/.aws/credentials nor ~/.aws/config has such a profile: \
                 `aws configure list-profiles` lists them"
            ))),
        };
    }
    let has = |key: &str| found.iter().any(|(k, _)| k == key);
    if !has("aws_access_key_id") && ELSEWHERE.iter().any(|key| has(key)) {
        return Err(Error::Config(format!(
            "the AWS profile {name} gets its keys from elsewhere (SSO, a role or a process), which is not supported: \
             `eval $(aws configure export-credentials --profile {name} --format env)` sets them as variables"
        )));
    }
    let variable_of = |key: String| match key.as_str() {
        "aws_endpoint_url_s3" => "aws_endpoint_url".to_owned(),
        _ if key.starts_with("aws_") => key,
        _ => format!("aws_{key}"),
    };
    Ok(found.into_iter().filter(|(key, _)| USED.contains(&key.as_str())).map(|(k, v)| (variable_of(k), v)).collect())
}

fn ini_of_aws() -> IniDefault {
    let mut defaults = IniDefault::default();
    defaults.case_sensitive = true;
    defaults.delimiters = vec!['='];
    defaults.inline_comment_symbols = Some(Vec::new());
    defaults
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_profile_is_read_and_the_environment_wins() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".aws")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(home.path().join(".aws").join(name), text).unwrap();
        write(
            "credentials",
            "[default]\naws_access_key_id = AK#1\naws_secret_access_key = a/b+c=\n\n[lab]\naws_access_key_id=AK2\n\
             aws_secret_access_key=s2\naws_session_token=t2\n",
        );
        write(
            "config",
            "[default]\nregion = eu-central-1\ns3 =\n  max_concurrent_requests = 20\n\n[profile lab]\nregion = us-west-2\n\
             endpoint_url = http://localhost:9000\n\n[profile sso]\nsso_session = clinic\nregion = eu-west-1\n",
        );
        let home = home.path().display().to_string();
        let read = |set: &[(&str, &str)]| {
            let set: BTreeMap<&str, &str> = set.iter().copied().chain([("HOME", home.as_str())]).collect();
            options(|name| set.get(name).map(|&value| value.to_owned()))
        };
        let sorted = |set: &[(&str, &str)]| {
            let mut options = read(set).unwrap();
            options.sort();
            options.into_iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>()
        };
        assert_eq!(sorted(&[]), ["aws_access_key_id=AK#1", "aws_region=eu-central-1", "aws_secret_access_key=a/b+c="]);
        assert_eq!(
            sorted(&[("AWS_PROFILE", "lab")]),
            [
                "aws_access_key_id=AK2",
                "aws_endpoint_url=http://localhost:9000",
                "aws_region=us-west-2",
                "aws_secret_access_key=s2",
                "aws_session_token=t2",
            ]
        );
        assert!(read(&[("AWS_ACCESS_KEY_ID", "own")]).unwrap().is_empty());
        let elsewhere = read(&[("AWS_PROFILE", "sso")]).unwrap_err().to_string();
        assert!(elsewhere.contains("export-credentials --profile sso"), "{elsewhere}");
        assert!(read(&[("AWS_PROFILE", "none")]).unwrap_err().to_string().contains("list-profiles"));
        let none: BTreeMap<&str, String> = BTreeMap::new();
        assert!(options(|name| none.get(name).cloned()).unwrap().is_empty());
    }
}
